"""The postcard world: small scenes with captions, pictures, maps and motion, and exact truth."""

from dgate_core.postcards.caption import scene_to_caption, vocabulary
from dgate_core.postcards.edges import EdgeOptions, detect_edges
from dgate_core.postcards.layout import Moment, PlacedObject, layout_scene, scene_to_truth
from dgate_core.postcards.maps import (
    FIRST_OBJECT_LABEL,
    GROUND_LABEL,
    SKY_LABEL,
    PoseSkeleton,
    canny_map,
    depth_map,
    pose_skeleton,
    segmentation_map,
)
from dgate_core.postcards.motion import render_frames, scene_at, trace_objects
from dgate_core.postcards.negatives import hard_negatives, replace_attribute
from dgate_core.postcards.parse import CaptionError, parse_caption
from dgate_core.postcards.render import render_contact_sheet, render_moment, render_scene
from dgate_core.postcards.scene import (
    COLOURS,
    GROUNDS,
    OBJECTS,
    PLACES,
    POSES,
    SIZES,
    SKIES,
    Scene,
    SceneError,
    SceneObject,
    SceneTruth,
    SlotTruth,
)
from dgate_core.postcards.split import HELD_OUT_PAIRS, TRAIN_PAIRS, is_held_out, sample_scene
from dgate_core.postcards.styles import STYLES, Style, apply_style

__all__ = [
    "COLOURS",
    "FIRST_OBJECT_LABEL",
    "GROUNDS",
    "GROUND_LABEL",
    "HELD_OUT_PAIRS",
    "OBJECTS",
    "PLACES",
    "POSES",
    "SIZES",
    "SKIES",
    "SKY_LABEL",
    "STYLES",
    "TRAIN_PAIRS",
    "CaptionError",
    "EdgeOptions",
    "Moment",
    "PlacedObject",
    "PoseSkeleton",
    "Scene",
    "SceneError",
    "SceneObject",
    "SceneTruth",
    "SlotTruth",
    "Style",
    "apply_style",
    "canny_map",
    "depth_map",
    "detect_edges",
    "hard_negatives",
    "is_held_out",
    "layout_scene",
    "parse_caption",
    "pose_skeleton",
    "render_contact_sheet",
    "render_frames",
    "render_moment",
    "render_scene",
    "replace_attribute",
    "sample_scene",
    "scene_at",
    "scene_to_caption",
    "scene_to_truth",
    "segmentation_map",
    "trace_objects",
    "vocabulary",
]
