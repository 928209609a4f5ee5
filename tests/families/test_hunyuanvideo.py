"""HunyuanVideo: one sample's text is cut, so no attention needs a mask; several keep theirs."""

import pytest
import torch
from families.running import PAIR, assemble_case, batch_for, run_ours, run_stock

from difftool.planning.make import make_plan
from difftool.planning.outputs import RunOptions
from difftool.recipe.load import load_recipe


def masks_of(batch, monkeypatch):
    """Which attention masks the blocks pass on while our pipeline runs."""
    assembled = assemble_case("hunyuanvideo")
    seen = []
    processor = type(assembled.components.transformer.transformer_blocks[0].attn.processor)
    call = processor.__call__

    def watched(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, image_rotary_emb=None):
        seen.append(attention_mask)
        return call(self, attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb)

    monkeypatch.setattr(processor, "__call__", watched)
    blocks = assembled.components.transformer.transformer_blocks
    before = [len(block._forward_pre_hooks) for block in blocks]
    run_ours(assembled, batch)
    assert [len(block._forward_pre_hooks) for block in blocks] == before
    return seen


def test_one_sample_runs_without_a_mask_and_several_with_theirs(monkeypatch):
    assembled = assemble_case("hunyuanvideo")
    alone = masks_of(batch_for(assembled, num_inference_steps=1), monkeypatch)
    assert alone and all(mask is None for mask in alone)
    together = masks_of(batch_for(assembled, num_inference_steps=1, prompt=PAIR, seeds=[1, 2]), monkeypatch)
    assert together and all(mask is not None for mask in together)


def test_the_text_is_as_long_as_its_tokens():
    assembled = assemble_case("hunyuanvideo")
    batch = batch_for(assembled)
    embeds, _, mask = assembled.config.encode_prompt(assembled.components, batch, torch.device("cpu"), negative=False)
    assert embeds.shape[1] == mask.shape[1] < batch.max_sequence_length and bool(mask.all())


def test_with_masks_every_bit_is_the_stock_pipeline_s():
    """The tolerance of the case is for cut texts alone."""
    assembled = assemble_case("hunyuanvideo")
    batch = batch_for(assembled, prompt=PAIR, seeds=[1, 2])
    assert torch.equal(run_ours(assembled, batch)[1], run_stock(assembled, batch)[1])


@pytest.mark.parametrize(("given", "shift"), [({}, 17.0), ({"scheduler": {"flow_shift": 9.0}}, 9.0)])
def test_a_checkpoint_brings_its_own_shift(given, shift):
    recipe = {"model": "FastVideo/FastHunyuan-diffusers", "sampling": {"prompt": "x", **given}}
    sampling = make_plan(load_recipe(recipe), run=RunOptions()).items[0].sampling
    assert (sampling["num_inference_steps"], sampling["scheduler"]["flow_shift"]) == (6, shift)
