"""Pictures, maps, motion and styles: what is drawn agrees with what the scene says."""

from __future__ import annotations

import subprocess
import sys
from itertools import combinations, product

import numpy as np
import numpy.typing as npt
import pytest

from dgate_core.postcards import (
    COLOURS,
    FIRST_OBJECT_LABEL,
    GROUND_LABEL,
    GROUNDS,
    OBJECTS,
    POSES,
    SKIES,
    SKY_LABEL,
    STYLES,
    Scene,
    SceneError,
    SceneObject,
    apply_style,
    canny_map,
    depth_map,
    detect_edges,
    layout_scene,
    pose_skeleton,
    render_contact_sheet,
    render_frames,
    render_scene,
    sample_scene,
    scene_at,
    segmentation_map,
    trace_objects,
)
from dgate_core.postcards.figures import draw_figure
from dgate_core.postcards.layout import FIGURE_ASPECT
from dgate_core.postcards.palette import COLOUR_RGB, choose_tones
from dgate_core.postcards.persons import JOINTS
from dgate_core.postcards.styles import Style

FULL = Scene(
    (
        SceneObject("person", "red", place="left", pose="waving"),
        SceneObject("boat", "blue", place="middle"),
        SceneObject("balloon", "yellow", place="right"),
    ),
    "sea",
    "day",
    seed=7,
)


def scene_of(kind: str, colour: str, sky: str = "day", size: str | None = None) -> Scene:
    return Scene((SceneObject(kind, colour, size=size),), "grass", sky, seed=11)


def mean_difference(first: npt.NDArray[np.uint8], second: npt.NDArray[np.uint8]) -> float:
    return float(np.abs(first.astype(float) - second.astype(float)).mean())


def test_equal_scenes_give_equal_pixels_in_another_process() -> None:
    script = (
        "import hashlib, numpy as np; from dgate_core.postcards import sample_scene, render_scene; "
        "rng = np.random.default_rng(5); "
        "print(hashlib.sha256(b''.join(render_scene(sample_scene(rng)).tobytes() for _ in range(20))).hexdigest())"
    )
    runs = [subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True) for _ in "ab"]
    assert runs[0].stdout == runs[1].stdout
    assert len(runs[0].stdout.strip()) == 64


def test_importing_the_world_loads_no_torch() -> None:
    script = (
        "import sys, dgate_core.postcards; print(sorted({'torch', 'diffusers', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("size", [16, 64, 128, 200])
def test_pictures_have_the_size_asked_for(size: int) -> None:
    picture = render_scene(FULL, size)
    assert picture.shape == (size, size, 3)
    assert picture.dtype == np.uint8
    assert picture.flags.writeable


def test_geometry_is_the_same_at_every_size() -> None:
    small, large = render_scene(FULL, 64), render_scene(FULL, 128)
    averaged = large.reshape(64, 2, 64, 2, 3).mean(axis=(1, 3)).round().astype(np.uint8)
    assert mean_difference(small, averaged) < 3
    assert np.mean(segmentation_map(FULL, 64) != segmentation_map(FULL, 128)[1::2, 1::2]) < 0.03


def test_the_seed_changes_the_picture() -> None:
    one = Scene(FULL.objects, FULL.ground, FULL.sky, seed=8)
    assert mean_difference(render_scene(FULL), render_scene(one)) > 1


def test_too_small_a_picture_is_refused() -> None:
    with pytest.raises(SceneError, match="8 pixels"):
        render_scene(FULL, 8)


@pytest.mark.parametrize("size", ["small", None, "large"])
@pytest.mark.parametrize("sky", SKIES)
def test_a_good_share_of_every_object_has_its_colour(sky: str, size: str | None) -> None:
    for kind, colour in product(OBJECTS, COLOURS):
        scene = scene_of(kind, colour, sky, size)
        (thing,) = layout_scene(scene)
        tones = choose_tones(colour, sky, thing.tint, thing.skin)
        own = np.array([tones[name] for name in ("base", "light", "dark")], dtype=float)
        pixels = render_scene(scene, 128)[segmentation_map(scene, 128) == FIRST_OBJECT_LABEL].astype(float)
        near = np.linalg.norm(pixels[:, None] - own, axis=2).min(axis=1) < 45
        assert near.mean() > 0.35, (kind, colour, near.mean())


@pytest.mark.parametrize("sky", SKIES)
def test_colours_stay_far_apart_in_every_light(sky: str) -> None:
    tones = {colour: np.array(choose_tones(colour, sky, (0, 0, 0), 0)["base"], dtype=float) for colour in COLOURS}
    for one, other in combinations(COLOURS, 2):
        assert np.linalg.norm(tones[one] - tones[other]) > 85, (one, other)
    for colour in COLOURS:
        palette = {name: np.linalg.norm(tones[colour] - np.array(rgb, dtype=float)) for name, rgb in COLOUR_RGB.items()}
        assert min(palette, key=lambda name: float(palette[name])) == colour


@pytest.mark.parametrize(("kind", "pose"), [(kind, None) for kind in OBJECTS] + [("person", pose) for pose in POSES])
def test_figures_keep_to_their_boxes_at_all_times(kind: str, pose: str | None) -> None:
    for phase in np.linspace(0, 4, 41):
        points = draw_figure(kind, pose, float(phase)).points
        assert np.abs(points[:, 0]).max() <= FIGURE_ASPECT[kind] / 2 + 0.04
        assert points[:, 1].min() >= -0.05
        assert points[:, 1].max() <= 1.05


def test_segmentation_covers_the_layout() -> None:
    rng = np.random.default_rng(6)
    for _ in range(60):
        scene = sample_scene(rng, split="any")
        labels = segmentation_map(scene)
        placed = layout_scene(scene)
        assert set(np.unique(labels)) == {
            SKY_LABEL,
            GROUND_LABEL,
            *range(FIRST_OBJECT_LABEL, FIRST_OBJECT_LABEL + len(placed)),
        }
        for index, thing in enumerate(placed):
            rows, columns = np.nonzero(labels == FIRST_OBJECT_LABEL + index)
            left, top, right, bottom = (64 * edge for edge in thing.box)
            assert left - 2 <= columns.min()
            assert columns.max() <= right + 2
            assert top - 2 <= rows.min()
            assert rows.max() <= bottom + 2
            assert len(rows) > 0.2 * (right - left) * (bottom - top)


def test_segmentation_agrees_with_the_picture() -> None:
    """Take the object away: exactly the pixels of its mask (and of its shadow below) change."""
    with_bird = Scene(
        (SceneObject("bird", "red", place="left"), SceneObject("house", "blue", place="right")), "snow", "day"
    )
    blue_bird = Scene(
        (SceneObject("bird", "green", place="left"), SceneObject("house", "blue", place="right")), "snow", "day"
    )
    changed = np.any(render_scene(with_bird, 128) != render_scene(blue_bird, 128), axis=2)
    mask = segmentation_map(with_bird, 128) == FIRST_OBJECT_LABEL
    assert np.sum(changed & mask) > 0.8 * mask.sum()
    assert np.sum(changed & ~mask) < 0.2 * mask.sum()


def test_depth_grows_towards_the_viewer_and_is_flat_on_objects() -> None:
    labels, depth = segmentation_map(FULL), depth_map(FULL)
    assert depth.dtype == np.float32
    assert depth.min() == 0
    assert depth.max() <= 1
    assert np.all(depth[labels == SKY_LABEL] == 0)
    ground = np.where(labels == GROUND_LABEL, depth, np.nan)
    assert np.all(np.diff(ground[:, 0][~np.isnan(ground[:, 0])]) > 0)
    for index, thing in enumerate(layout_scene(FULL)):
        assert np.all(depth[labels == FIRST_OBJECT_LABEL + index] == np.float32(thing.depth))


def test_edges_lie_on_outlines() -> None:
    square = np.zeros((40, 40), np.uint8)
    square[10:30, 12:28] = 200
    edges = detect_edges(square)
    rows, columns = np.nonzero(edges)
    assert set(np.unique(edges)) == {0, 255}
    assert 9 <= rows.min() <= 10
    assert 29 <= rows.max() <= 30
    assert 11 <= columns.min() <= 12
    assert 27 <= columns.max() <= 28
    assert edges[15:25, 15:25].sum() == 0
    assert 60 < len(rows) < 90
    assert 0.03 < np.mean(canny_map(FULL) > 0) < 0.35


def test_skeletons_lie_on_their_persons() -> None:
    for pose, seed in product(POSES, range(6)):
        scene = Scene((SceneObject("person", "green", 2, "large", pose=pose),), "sand", "day", seed)
        labels, skeleton = segmentation_map(scene, 128), pose_skeleton(scene, 128)
        assert skeleton.joints.shape == (2, len(JOINTS), 3)
        for index, person in enumerate(skeleton.joints):
            for name, (x, y, visible) in zip(JOINTS, person, strict=True):
                assert labels[int(y), int(x)] == FIRST_OBJECT_LABEL + index, (pose, seed, name)
                assert visible == 1
        assert np.all(skeleton.picture[labels < FIRST_OBJECT_LABEL].mean(axis=0) < 15)


def test_a_mirrored_person_raises_the_other_arm() -> None:
    for seed in range(12):
        scene = Scene((SceneObject("person", "green", pose="waving"),), "sand", "day", seed)
        (person,) = pose_skeleton(scene).joints
        y = dict(zip(JOINTS, person[:, 1], strict=True))
        x = dict(zip(JOINTS, person[:, 0], strict=True))
        assert x["right_wrist"] < x["neck"] < x["left_wrist"]
        raised = "left" if layout_scene(scene)[0].mirrored else "right"
        assert y[f"{raised}_wrist"] < y["neck"]


def test_a_scene_without_persons_has_an_empty_skeleton() -> None:
    skeleton = pose_skeleton(scene_of("boat", "red"))
    assert skeleton.joints.shape == (0, len(JOINTS), 3)
    assert not skeleton.picture.any()


@pytest.mark.parametrize("ground", GROUNDS)
def test_a_clip_begins_with_the_picture(ground: str) -> None:
    scene = Scene(FULL.objects, ground, "rain", seed=3)
    clip = render_frames(scene, 3, fps=2, size=32)
    assert clip.shape == (3, 32, 32, 3)
    assert np.array_equal(clip[0], render_scene(scene, 32))
    assert mean_difference(clip[0], clip[2]) > 0.5


def test_things_move_as_they_should_and_stay_in_sight() -> None:
    rng = np.random.default_rng(8)
    for _ in range(40):
        scene = sample_scene(rng, split="any")
        for seconds in (0.5, 2.0, 9.0):
            placed = scene_at(scene, seconds).placed
            for thing in placed:
                left, top, right, bottom = thing.box
                assert min(left, top) > -0.001
                assert max(right, bottom) < 1.001
            order = sorted(layout_scene(scene), key=lambda thing: thing.x)
            assert [(t.kind, t.slot) for t in sorted(placed, key=lambda thing: thing.x)] == [
                (t.kind, t.slot) for t in order
            ]


def test_traces_are_the_displacements_of_the_layout() -> None:
    traces = trace_objects(FULL, frames=9, fps=4)
    assert traces.shape == (9, 3, 2)
    assert not traces[0].any()
    person, boat, balloon = traces[4].tolist()
    assert person == [0, 0]
    assert abs(boat[0]) > 0.005 or abs(boat[1]) > 0.0
    assert balloon[0] == 0
    assert balloon[1] < 0
    moved = segmentation_map(scene_at(FULL, 1.0)) == FIRST_OBJECT_LABEL + 2
    still = segmentation_map(FULL) == FIRST_OBJECT_LABEL + 2
    drop = np.nonzero(moved)[0].mean() - np.nonzero(still)[0].mean()
    assert drop == pytest.approx(64 * balloon[1], abs=0.5)


def test_impossible_clips_are_refused() -> None:
    with pytest.raises(SceneError, match="0 frames"):
        render_frames(FULL, 0)
    with pytest.raises(SceneError, match="-1"):
        scene_at(FULL, -1)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("size", [64, 100])
def test_styles_change_the_picture_and_repeat_themselves(style: Style, size: int) -> None:
    picture = render_scene(FULL, size)
    styled = apply_style(picture, style)
    assert styled.shape == picture.shape
    assert styled.dtype == np.uint8
    assert np.array_equal(styled, apply_style(picture, style))
    assert mean_difference(styled, picture) > 4
    others = [apply_style(picture, other) for other in STYLES if other != style]
    assert min(mean_difference(styled, other) for other in others) > 8


def test_night_vision_is_green_and_ink_is_nearly_grey() -> None:
    picture = render_scene(FULL)
    night, ink = (apply_style(picture, style).astype(float) for style in ("night_vision", "ink"))
    assert np.all(night[..., 1] >= night[..., 0])
    assert np.all(night[..., 1] >= night[..., 2])
    assert (ink.max(axis=2) - ink.min(axis=2)).mean() < 30


def test_wrong_styles_and_pictures_are_refused() -> None:
    with pytest.raises(SceneError, match="cubism"):
        apply_style(render_scene(FULL), "cubism")  # type: ignore[arg-type]
    with pytest.raises(SceneError, match="float"):
        apply_style(np.zeros((8, 8, 3)), "ink")  # type: ignore[arg-type]


def test_a_contact_sheet_holds_every_picture() -> None:
    scenes = [scene_of(kind, "red") for kind in OBJECTS]
    sheet = render_contact_sheet(scenes, size=32, columns=4, gap=2)
    assert sheet.shape == (3 * 34 + 2, 4 * 34 + 2, 3)
    assert np.array_equal(sheet[36:68, 36:68], render_scene(scenes[5], 32))
    with pytest.raises(SceneError, match="contact sheet"):
        render_contact_sheet([])
