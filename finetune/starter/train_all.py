"""Renders, trains judge, autoencoder, text encoder, CLIP, UNet and DiT within one budget, and evaluates.

`python -m finetune.starter.train_all --profile gpu --out DIR --seconds 540`; each part is a command of its own.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Final

from finetune.starter.pack import MODELS, pack_models
from finetune.starter.profiles import PROFILES, Profile
from finetune.starter.store import start_renderer

PARTS: Final = ("judge", "vae", "text", "clip", "unet", "dit")
TRAINED: Final = {"judge": "judge", "clip": "starter-clip", "dit": "starter-dit"}
"""Part → model; every other part trains something of starter-unet."""
FIGURES: Final = {"unet": "evaluate", "dit": "evaluate-dit"}
NEEDS: Final = {
    "unet": ("vae", "text"),
    "dit": ("vae", "text"),
    "evaluate": ("vae", "judge", "unet"),
    "evaluate-dit": ("judge", "dit"),
}
_PACK_SECONDS: Final = 60.0


@dataclass(slots=True)
class Session:
    """Processes of one budget and their common log."""

    out: Path
    """Output folder."""
    log: IO[str]
    """Gets every line that a part prints."""
    running: dict[str, subprocess.Popen[str]] = field(default_factory=dict)
    """Parts at work."""
    failed: list[str] = field(default_factory=list)
    """Parts that ended with an error."""
    started: float = field(default_factory=time.time)
    """When the budget began, in Unix seconds."""

    def say(self, line: str) -> None:
        """Prints and logs a line with the seconds since the start."""
        text = f"{time.time() - self.started:6.1f} {line.rstrip()}"
        print(text, flush=True)
        self.log.write(text + "\n")
        self.log.flush()

    def start(self, name: str, arguments: list[str]) -> None:
        """Starts the module of a part."""
        module = f"finetune.starter.{'evaluate' if name in FIGURES.values() else f'train_{name}'}"
        command = [sys.executable, "-u", "-m", module, *arguments]
        quiet = os.environ | {"TQDM_DISABLE": "1"}
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=quiet)
        self.running[name] = process
        threading.Thread(target=self._relay, args=(process.stdout,), daemon=True).start()

    def _relay(self, lines: IO[str]) -> None:
        for line in lines:
            self.say(line)

    def reap(self) -> None:
        """Takes note of parts that have ended; one that fails ends those that need it."""
        for name, process in list(self.running.items()):
            if process.poll() is None:
                continue
            del self.running[name]
            self.say(f"{name} ended with code {process.returncode}")
            if process.returncode != 0:
                self.failed.append(name)
                for other in [other for other, needs in NEEDS.items() if name in needs and other in self.running]:
                    self.running[other].terminate()


def run_session(given: argparse.Namespace, profile: Profile, session: Session) -> None:
    """Starts everything at once (a part waits for what it needs) and packs what there is every minute.

    The UNet starts from the text encoder that has learned to parse, unless it goes on from --init.
    """
    renderer = start_renderer(given.out / "data", profile, given.seed)
    prepare_folder(given)
    for name in given.parts:
        rates = getattr(profile, name)
        deadline = session.started + rates.share * given.seconds
        common = ["--profile", profile.name, "--out", str(given.out), "--seed", str(given.seed)]
        extras = [*(["--resume"] if given.resume else []), *(["--init", str(given.init)] if given.init else [])]
        if name in FIGURES and given.init is None:
            extras += ["--init-text", str(given.out / "text" / "model.safetensors")]
        session.start(name, [*common, "--deadline", str(deadline), *extras, *_device(given)])
    sizes = ["--fresh", str(profile.fresh_scenes), "--generated", str(profile.generated)]
    for part in {"unet", *given.parts} & set(FIGURES):
        name = FIGURES[part]
        pipeline = ["--pipeline", f"starter-{part}", "--models", str(given.out), "--await-part", *NEEDS[name]]
        session.start(name, [*pipeline, *sizes, *_device(given)])
    packed = time.monotonic()
    while session.running:
        time.sleep(0.5)
        session.reap()
        if given.pack and time.monotonic() - packed > _PACK_SECONDS:
            packed = time.monotonic()
            pack_models(given.out, given.pack, list_trained(given.parts))
    renderer.wait()


def list_trained(parts: Sequence[str]) -> list[str]:
    """Models that these parts change."""
    return sorted({TRAINED.get(part, "starter-unet") for part in parts})


def _device(given: argparse.Namespace) -> list[str]:
    return ["--device", given.device] if given.device else []


def prepare_folder(given: argparse.Namespace) -> None:
    """Clears finished marks of the parts to train; copies from --init the models that are not trained again."""
    work = given.out / "work"
    work.mkdir(parents=True, exist_ok=True)
    for name in given.parts:
        (work / f"{name}.done").unlink(missing_ok=True)
    if given.init is None:
        return
    for name in [name for name in MODELS if (given.init / name).is_dir()]:
        shutil.copytree(given.init / name, given.out / name, dirs_exist_ok=True)
    for name in set(PARTS) - set(given.parts):
        (work / f"{name}.done").touch()


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", choices=sorted(PROFILES), default="cpu")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, help="budget for everything, evaluation included")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what to train")
    parser.add_argument("--init", type=Path, help="models to go on from, with a fresh optimizer")
    parser.add_argument("--resume", action="store_true", help="go on from the states in --out")
    parser.add_argument("--pack", type=Path, help="folder for the models in pieces, every minute and at the end")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device")
    given = parser.parse_args()
    if set(given.parts) != set(PARTS) and given.init is None and not given.resume:
        parser.error("--parts without all parts needs --init or --resume, for the models that are not trained")
    return given


def main() -> int:
    """Runs the session; 1 when a part failed."""
    given = parse_arguments()
    profile = PROFILES[given.profile]
    given.seconds = given.seconds if given.seconds is not None else profile.seconds
    given.out.mkdir(parents=True, exist_ok=True)
    with (given.out / "log.txt").open("a", encoding="utf-8") as log:
        session = Session(given.out, log)
        run_session(given, profile, session)
        session.say(f"done, failed parts: {', '.join(session.failed) or 'none'}")
    if given.pack:
        pack_models(given.out, given.pack, list_trained(given.parts))
    return 1 if session.failed else 0


if __name__ == "__main__":
    sys.exit(main())
