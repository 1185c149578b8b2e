"""Real transformer pipelines of diffusers at toy size: the classes are the real ones, the weights are random."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
    FluxPipeline,
    FluxTransformer2DModel,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from transformers import (
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    PixtralImageProcessor,
    PixtralProcessor,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from tests.tiny import WIDTH, make_text_config, make_tokenizer, make_vae

_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789,."
_CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


_CHAT_OF_PARTS = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'][0]['text'] }}<|im_end|>\n"
    "{% endfor %}"
)


def make_t5(width: int = WIDTH) -> tuple[T5Tokenizer, T5EncoderModel]:
    """T5 whose tokens are letters."""
    specials = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    tokenizer = T5Tokenizer(vocab=[*specials, *((letter, -1.0) for letter in _LETTERS)], extra_ids=0)
    config = T5Config(vocab_size=64, d_model=width, d_kv=8, d_ff=37, num_layers=2, num_heads=4)
    return tokenizer, T5EncoderModel(config)


def make_qwen_tokenizer() -> Qwen2Tokenizer:
    """A byte-level tokenizer without merges, with the marks of a chat."""
    from tokenizers.pre_tokenizers import ByteLevel

    vocab = {letter: number for number, letter in enumerate(sorted(ByteLevel.alphabet()))}
    vocab["<|endoftext|>"] = len(vocab)
    tokenizer = Qwen2Tokenizer(vocab=vocab, merges=[])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = _CHAT
    return tokenizer


def make_sd3(folder: Path, seed: int = 0, dynamic: bool = False) -> Path:
    """A Stable Diffusion 3 pipeline folder, 32 x 32 px.

    Args:
        dynamic: Whether the noise levels are shifted by resolution, as in SD 3.5 medium.
    """
    torch.manual_seed(seed)
    tokenizer, encoder = make_t5(2 * WIDTH)
    transformer = SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=2 * WIDTH,
        caption_projection_dim=32,
        pooled_projection_dim=2 * WIDTH,
        pos_embed_max_size=16,
        qk_norm="rms_norm",
        dual_attention_layers=(0,),
    )
    pipeline = StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=dynamic),
        vae=make_vae(shift_factor=0.06, scaling_factor=1.5),
        text_encoder=CLIPTextModelWithProjection(make_text_config()),
        tokenizer=make_tokenizer(folder / "words"),
        text_encoder_2=CLIPTextModelWithProjection(make_text_config()),
        tokenizer_2=make_tokenizer(folder / "words"),
        text_encoder_3=encoder,
        tokenizer_3=tokenizer,
    )
    return _save(pipeline, folder)


def make_flux(folder: Path, seed: int = 0, distilled: bool = True) -> Path:
    """A Flux.1 pipeline folder; distilled has embedded guidance as dev, the other none as schnell."""
    torch.manual_seed(seed)
    tokenizer, encoder = make_t5()
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        guidance_embeds=distilled,
        axes_dims_rope=(4, 4, 8),
    )
    pipeline = FluxPipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=distilled),
        vae=make_vae(shift_factor=0.1, scaling_factor=0.4),
        text_encoder=CLIPTextModel(make_text_config()),
        tokenizer=make_tokenizer(folder / "words"),
        text_encoder_2=encoder,
        tokenizer_2=tokenizer,
    )
    return _save(pipeline, folder)


def make_pixart(folder: Path, seed: int = 0) -> Path:
    """A PixArt-Sigma pipeline folder, 32 x 32 px; predicts a variance too."""
    torch.manual_seed(seed)
    tokenizer, encoder = make_t5()
    transformer = PixArtTransformer2DModel(
        num_attention_heads=4,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        cross_attention_dim=32,
        sample_size=16,
        caption_channels=WIDTH,
        use_additional_conditions=False,
    )
    pipeline = PixArtSigmaPipeline(tokenizer, encoder, make_vae(), transformer, DPMSolverMultistepScheduler())
    return _save(pipeline, folder)


def make_qwen_image(folder: Path, seed: int = 0) -> Path:
    """A Qwen-Image pipeline folder."""
    torch.manual_seed(seed)
    tokenizer = make_qwen_tokenizer()
    text = {"hidden_size": WIDTH, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 2}
    rope = {"type": "mrope", "mrope_section": [2, 3, 3], "rope_type": "default", "rope_theta": 10000.0}
    config = Qwen2_5_VLConfig(
        text_config=text
        | {"num_key_value_heads": 2, "vocab_size": len(tokenizer), "rope_parameters": rope, "rope_scaling": rope},
        vision_config={
            "depth": 1,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_heads": 2,
            "out_hidden_size": WIDTH,
        },
    )
    transformer = QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(4, 6, 6),
    )
    vae = AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 2],
        num_res_blocks=1,
        temperal_downsample=[True],
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[1.5, 0.8, 1.1, 2.0],
    )
    pipeline = QwenImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=vae,
        text_encoder=Qwen2_5_VLForConditionalGeneration(config),
        tokenizer=tokenizer,
        transformer=transformer,
    )
    return _save(pipeline, folder)


def make_flux2(folder: Path, seed: int = 0) -> Path:
    """A Flux.2 pipeline folder, as `dev`: Mistral reads the text, guidance is an input."""
    torch.manual_seed(seed)
    words = make_qwen_tokenizer()
    words.add_special_tokens({"additional_special_tokens": ["[IMG]", "[IMG_BREAK]", "[IMG_END]"]})
    processor = PixtralProcessor(PixtralImageProcessor(), words, chat_template=_CHAT_OF_PARTS)
    text = {"model_type": "mistral", "hidden_size": WIDTH, "intermediate_size": 16, "num_hidden_layers": 30}
    text |= {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "vocab_size": len(words)}
    vision = {"model_type": "pixtral", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    config = Mistral3Config(
        text_config=text, vision_config={**vision, "num_attention_heads": 2}, image_token_index=len(words) - 3
    )
    pipeline = Flux2Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=_make_flux2_vae(),
        text_encoder=Mistral3ForConditionalGeneration(config),
        tokenizer=processor,
        transformer=_make_flux2_transformer(guided=True),
    )
    return _save(pipeline, folder)


def make_flux2_klein(folder: Path, seed: int = 0, distilled: bool = False) -> Path:
    """A Flux.2 pipeline folder, as `klein`: Qwen3 reads the text, guidance by a negative prompt unless distilled."""
    torch.manual_seed(seed)
    tokenizer = make_qwen_tokenizer()
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=16,
        num_hidden_layers=27,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
    )
    pipeline = Flux2KleinPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=_make_flux2_vae(),
        text_encoder=Qwen3ForCausalLM(config),
        tokenizer=tokenizer,
        transformer=_make_flux2_transformer(guided=False),
        is_distilled=distilled,
    )
    return _save(pipeline, folder)


def _make_flux2_transformer(guided: bool) -> Flux2Transformer2DModel:
    return Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=3 * WIDTH,
        timestep_guidance_channels=16,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=guided,
    )


def _make_flux2_vae() -> AutoencoderKLFlux2:
    """With a batch norm that has seen something."""
    vae = AutoencoderKLFlux2(
        block_out_channels=(16, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
    )
    vae.bn.running_mean.copy_(torch.randn(16))
    vae.bn.running_var.copy_(torch.rand(16) + 0.5)
    return vae


def make_z_image(folder: Path, seed: int = 0) -> Path:
    """A Z-Image pipeline folder."""
    torch.manual_seed(seed)
    tokenizer = make_qwen_tokenizer()
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=37,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
    )
    transformer = ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=WIDTH,
        axes_dims=[4, 6, 6],
        axes_lens=[1024, 64, 64],
    )
    pipeline = ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=make_vae(shift_factor=0.1, scaling_factor=0.4),
        text_encoder=Qwen3Model(config),
        tokenizer=tokenizer,
        transformer=transformer,
    )
    return _save(pipeline, folder)


def _save(pipeline: Any, folder: Path) -> Path:
    pipeline.save_pretrained(folder / "model", safe_serialization=True)
    return folder / "model"
