"""Parameters of the encoders and VAEs that published checkpoints share, for what is planned without their files.

Counted from the classes of transformers and diffusers with the configs of the repositories; a test counts them again.
"""

CLIP_L = 123_060_480  # openai/clip-vit-large-patch14, the text model
CLIP_L_PROJECTED = 123_650_304
CLIP_BIG_G_PROJECTED = 694_659_840  # laion/CLIP-ViT-bigG-14, the text model
CLIP_H_VISION = 630_766_080  # laion/CLIP-ViT-H-14, the vision model
T5_XXL = 4_762_310_656  # google/t5-v1_1-xxl, the encoder
UMT5_XXL = 5_680_910_336  # google/umt5-xxl, the encoder
LLAMA_8B = 7_505_186_816  # of xtuner/llava-llama-3-8b-v1_1, without its head
QWEN3_4B = 4_022_468_096
QWEN3_8B = 8_190_735_360
QWEN25_VL_7B = 8_292_166_656
MISTRAL_SMALL = 24_011_361_280  # Mistral-Small-3.2-24B, with its vision model

DEALT = {  # of an encoder's parameters, those that `stages.text_encoding.tp` deals to ranks
    CLIP_L: 84_999_168,
    CLIP_L_PROJECTED: 84_999_168,
    CLIP_BIG_G_PROJECTED: 629_432_320,
    T5_XXL: 4_762_109_952,
    UMT5_XXL: 5_680_709_632,
    LLAMA_8B: 7_504_920_576,
    QWEN3_4B: 3_633_315_840,
    QWEN3_8B: 6_945_767_424,
    QWEN25_VL_7B: 6_525_417_472,
    MISTRAL_SMALL: 22_229_811_200,
}

VAE_16_CHANNELS = 83_819_683  # of FLUX.1, SD3 and Z-Image
VAE_FLUX2 = 84_046_115
VAE_WAN = 126_892_531  # of Qwen-Image too
VAE_WAN22 = 704_688_668  # of TI2V-5B
VAE_HUNYUANVIDEO = 246_478_803
VAE_LTX = 419_193_649  # version 0.9.0
