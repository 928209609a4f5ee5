"""The options of `vmoba_attn`, by the names and defaults of FastVideo and SGLang: their JSON is YAML as it is."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from difftool.recipe.fields import Count, Fraction, Many, Section, Whole, problem, worded

Pair = Annotated[Many[Count], Field(min_length=2, max_length=2), worded("[rows, columns], each at least 1")]
Triple = Annotated[Many[Count], Field(min_length=3, max_length=3), worded("[frames, rows, columns], each at least 1")]


class MobaConfig(Section):
    """The chunks of a video among which each query chooses, and how: both modes may be described, one is chosen."""

    temporal_chunk_size: Count = Field(description="frames of a temporal chunk, in tokens as all sizes are")
    temporal_topk: Count | None = Field(default=None, description="temporal chunks each query sees, for topk")
    spatial_chunk_size: Pair = Field(description="rows and columns of a spatial chunk")
    spatial_topk: Count | None = Field(default=None, description="spatial chunks each query sees, for topk")
    st_chunk_size: Triple = Field(description="frames, rows and columns of a spatio-temporal chunk")
    st_topk: Count | None = Field(default=None, description="spatio-temporal chunks each query sees, for topk")
    moba_select_mode: Literal["threshold", "topk"] = Field(
        default="threshold", description="threshold takes chunks until their share of the likeness is enough"
    )
    moba_threshold: Fraction = Field(default=0.25, description="share of the likeness, for threshold")
    moba_threshold_type: Literal["query_head", "head_global", "block", "overall"] = Field(
        default="query_head",
        description="what chooses together: nothing, the queries of a head, all that want one chunk, or all",
    )
    first_full_layer: Whole = Field(default=0, description="layers at the start that leave nothing out")
    first_full_step: Whole = Field(default=12, description="steps at the start that leave nothing out")
    temporal_layer: Whole = Field(default=1, description="layers of a round that have temporal chunks")
    spatial_layer: Whole = Field(default=1, description="layers of a round that have spatial chunks, after those")
    st_layer: Whole = Field(default=1, description="layers of a round that have spatio-temporal chunks, at its end")

    @model_validator(mode="after")
    def _the_choice_is_complete(self) -> "MobaConfig":
        layers = {"temporal": self.temporal_layer, "spatial": self.spatial_layer, "st": self.st_layer}
        topk = {"temporal": self.temporal_topk, "spatial": self.spatial_topk, "st": self.st_topk}
        if not any(layers.values()):
            raise problem("temporal_layer, spatial_layer and st_layer are all 0; a round needs a layer")
        missing = [f"{part}_topk" for part, count in layers.items() if count and topk[part] is None]
        if self.moba_select_mode == "topk" and missing:
            raise problem(f"moba_select_mode=topk needs {missing[0]}, the chunks each query sees, such as 3")
        if self.moba_select_mode == "topk" and self.moba_threshold_type == "block":
            raise problem("moba_threshold_type=block is for moba_select_mode=threshold; use query_head")
        return self
