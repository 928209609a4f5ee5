"""What a worker loads for a plan: plans that agree in it can be made by the same process, one after the other."""

from typing import Any

from difftool.planning.plan import Plan

SECTIONS = ("model", "memory", "cache")


def loading(plan: Plan) -> dict[str, Any]:
    """All that decides how a worker starts, what it loads, and what it makes of it; requests and outputs do not, nor do
    LoRAs, which it can take out again, except of quantized weights and of encodings that are kept.
    """
    recipe = {key: plan.recipe.get(key) for key in SECTIONS}
    recipe["model"] = {key: value for key, value in (recipe["model"] or {}).items() if key != "lora"}
    decides = {"task", "model", "stages", "degrees", "device", "devices", "threads", "budget", "pin_memory"}
    resolved = plan.model_dump(include=decides)
    quantized = any(stage.get("quantization", "none") != "none" for stage in plan.stages.values())
    kept = plan.prompt_embeds_dir
    loras = [lora.model_dump() for lora in plan.loras] if quantized or kept else []
    return {"recipe": recipe, "offline": plan.offline, "loras": loras, "prompt_embeds_dir": kept, **resolved}
