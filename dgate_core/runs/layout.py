"""Where things stand in a run's folder; people script against these keys."""

from __future__ import annotations

RUN_FILE = "run.json"
RESULTS_FILE = "results.parquet"
BATCH_OUTPUT_FILE = "results.jsonl"
BATCH_ERRORS_FILE = "errors.jsonl"
GALLERY_FILE = "report/index.html"
RUN_CLAIM_PREFIX = "_run_claim"


def name_shard_folder(shard: int) -> str:
    """`shards/00012`."""
    return f"shards/{shard:05d}"


def name_bookkeeping_prefix(shard: int) -> str:
    """One listing under this prefix shows claim, parts and commit of a shard, and none of its images."""
    return f"{name_shard_folder(shard)}/_"


def name_claim_prefix(shard: int) -> str:
    """Claims are `_claim-0001`, `_claim-0002`, …: the highest number holds the shard."""
    return f"{name_shard_folder(shard)}/_claim"


def name_part(shard: int, claim: str, number: int) -> str:
    """The record of one written batch; the claim's token keeps two lanes' parts apart."""
    return f"{name_shard_folder(shard)}/_parts/{claim}-{number:05d}.parquet"


def name_parts_prefix(shard: int) -> str:
    """Prefix of all parts of a shard."""
    return f"{name_shard_folder(shard)}/_parts/"


def name_rows(shard: int) -> str:
    """The sidecar table of a finished shard."""
    return f"{name_shard_folder(shard)}/rows.parquet"


def name_stats(shard: int) -> str:
    """Counts and seconds by stage of a finished shard."""
    return f"{name_shard_folder(shard)}/_stats.json"


def name_commit(shard: int) -> str:
    """Written once, last: the shard is finished."""
    return f"{name_shard_folder(shard)}/_COMMIT"


def name_image(shard: int, ordinal: int, sha256: str, suffix: str) -> str:
    """Key of a picture; the content's hash in the name means that no writer ever overwrites another's bytes."""
    return f"{name_shard_folder(shard)}/images/{ordinal:08d}-{sha256[:8]}.{suffix}"


def name_quarantined(row_id: str, suffix: str) -> str:
    """A picture that was put aside: outside of everything that reads a run's pictures."""
    return f"quarantine/{row_id}.{suffix}"


def name_levers(weights_hash: str) -> str:
    """What a profile gives for speed in this run, for one model; absent where it gives nothing."""
    return f"levers/{weights_hash[:16]}.json"
