"""Bulk generation: a manifest becomes a folder of pictures that explains itself."""

from __future__ import annotations

from typing import Any, Literal

from prefect import flow

from tasks.evaluate import check_scoring, score_pictures
from tasks.finish import conclude_run, show_pictures, write_results
from tasks.folder import gather_settings, hold_folder
from tasks.lanes import run_local_lanes
from tasks.plan import plan_images
from tasks.pool_lanes import reconcile_lanes, submit_lanes


@flow(name="generate_images", retries=0, persist_result=False)
def generate_images(  # noqa: PLR0913, PLR0917 - flat, for the form in Prefect's UI
    manifest: list[str] | str = "suite:postcards-smoke",
    out: str = "runs/demo",
    model: str = "starter-unet",
    negative_prompt: str = "",
    num_images: int = 1,
    width: int | None = None,
    height: int | None = None,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    scheduler: str | None = None,
    style_preset: str | None = None,
    seed: int = 0,
    determinism: Literal["fast", "strict"] = "fast",
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    image_format: Literal["png", "jpeg", "webp"] = "png",
    container: Literal["files", "webdataset", "parquet"] = "files",
    execution: Literal["local", "work_pool"] = "local",
    lanes: int | None = None,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    batch_size: int | None = None,
    strict: bool = False,
    settings: dict[str, Any] | None = None,
) -> Any:
    """Makes the pictures of a manifest; the same parameters given again go on where the run stopped.

    Args:
        manifest: Parquet, JSONL, CSV or OpenAI Batch JSONL: a file, several, or a folder; paths, s3:// or suite:NAME.
        out: The run's folder, a path or s3://; with `work_pool` one that every worker sees.
        model: For rows that name none: a catalogue name, a diffusers folder, or a .safetensors file.
        negative_prompt: For rows that give none.
        num_images: Images per row.
        width: Pixels; none is the model's native size.
        height: Pixels; none is the model's native size.
        num_inference_steps: None is the model's default.
        guidance_scale: None is the model's default.
        scheduler: None is the model's own.
        style_preset: Name of a style preset.
        seed: Base seed for rows that give none.
        determinism: `strict` gives byte-equal files in any batch.
        precision: `auto` takes what the device does fastest.
        image_format: File format of the pictures.
        container: Loose files, a WebDataset tar per shard, or bytes in Parquet.
        execution: `local` runs the lanes on this machine, `work_pool` as flow runs on the pool `gpu`.
        lanes: Workers; none is one per GPU (or one on the CPU), with `work_pool` one per worker that polls.
        device: `auto` takes cuda, mps or cpu, in this order.
        batch_size: Rows per batch; none finds the best.
        strict: Bad rows stop the run before anything is made.
        settings: Others by name: png_level, quality, strict_batch_size, rows_per_shard, lease_seconds, score,
            reference, trackers.
    """
    given = gather_settings(locals())
    check_scoring(given)
    with hold_folder(out, given):
        run = plan_images([manifest] if isinstance(manifest, str) else manifest, out, given)
        if execution == "local":
            run_local_lanes(run, given)
        else:
            submit_lanes(run, given)
            reconcile_lanes(run, given)
        write_results(run)
        show_pictures(run)
        score_pictures(run, given)
    return conclude_run(run)
