"""Own augmentations: steps of albumentations by name and arguments, checked whole before anything is computed.

A step is a name, or a mapping of a name to arguments: ``"HorizontalFlip"``, ``{"RandomResizedCrop": {"scale": [0.5,
1]}}``, ``{"OneOf": {"transforms": [...], "p": 0.3}}``. Only names of albumentations' transforms of pictures count: no
code, no import path, no file, no other picture. Sizes that a step needs and does not name are the network's; what
shrinks averages areas unless it says otherwise; a mask's class is "none" where a step fills. A picture that comes out
at another size than the network's is shown as in evaluation after the last step.
"""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final

import cv2
from pydantic import ValidationError

from transferkit.core.errors import ConfigError, did_you_mean, gather
from transferkit.core.records import DataConfig
from transferkit.core.targets import IGNORED
from transferkit.core.text import first_line, one_line, shown
from transferkit.data.augment.presets import A, Blots, Elastic, Fit, RandomBox, Step
from transferkit.data.images.decode import Pixels
from transferkit.data.images.resize import INTERPOLATIONS

__all__ = ["carried_problems", "certain", "definitions_of", "own_steps", "step_problems"]

GROUPS: Final = ("OneOf", "OneOrOther", "RandomOrder", "Sequential", "SomeOf")
"""Those of albumentations' compositions that hold steps."""

_ELSEWHERE: Final = {
    "Normalize": "pictures are normalised afterwards, with the network's own numbers",
    "ToFloat": "pictures stay of 8 bits until they are normalised",
    "FromFloat": "pictures are of 8 bits already",
    "ToTensorV2": "pictures become tensors afterwards",
    "Lambda": "code cannot be named",
    "AtLeastOneBBoxRandomCrop": "it draws by boxes; RandomResizedCrop carries them along",
    "BBoxSafeRandomCrop": "it draws by boxes; RandomResizedCrop carries them along",
    "RandomSizedBBoxSafeCrop": "it draws by boxes; RandomResizedCrop carries them along",
    "ConstrainedCoarseDropout": "it draws by masks or boxes; CoarseDropout does without",
    "CropNonEmptyMaskIfExists": "it draws by masks; RandomResizedCrop carries them along",
    "Compose": "the list is one already; for steps that belong together name Sequential",
    "ReplayCompose": "the list is a composition already",
}
_FOREIGN: Final = frozenset({"cropping_bbox_key", "font_path", "metadata_key", "read_fn", "reference_images"})
"""Arguments that stand for code, files or pictures besides the one that is augmented."""

_LOSES_POINTS: Final = ("ThinPlateSpline",)
"""Of albumentations 2.0.8, though it is asked to keep those outside the picture."""

_CONSTANTS: Final = ("BORDER_", "INTER_")


class Ending(Fit):
    """The evaluation view of what is not of the network's size; nothing else is touched."""

    def apply(self, img: Pixels, **params: Any) -> Pixels:
        """Show a picture."""
        return img if img.shape[:2] == self.config.image_size else super().apply(img, **params)

    def apply_to_mask(self, mask: Any, *args: Any, **params: Any) -> Any:
        """Bring a mask along."""
        return mask if mask.shape[:2] == self.config.image_size else super().apply_to_mask(mask, *args, **params)

    def apply_to_keypoints(self, keypoints: Any, **params: Any) -> Any:
        """Bring points along."""
        same = tuple(params["shape"][:2]) == self.config.image_size
        return keypoints if same else super().apply_to_keypoints(keypoints, **params)


def definitions_of(steps: Any) -> list[Any]:
    """Return steps by name and arguments, for steps by name or objects of albumentations, or one `A.Compose`.

    Raises:
        ConfigError: There is none, or an object says nothing of how it was made.
    """
    if isinstance(steps, A.Compose):
        steps = steps.transforms
    if isinstance(steps, A.BasicTransform | A.BaseCompose):
        steps = [steps]
    if not isinstance(steps, Sequence) or isinstance(steps, str) or not steps:
        raise ConfigError(f"augment is {shown(steps)}, expected a preset's name or a list of steps, one at least")
    return [_named(step.to_dict()["transform"]) if _is_object(step) else step for step in steps]


def _is_object(step: Any) -> bool:
    if not isinstance(step, A.BasicTransform | A.BaseCompose):
        return False
    if type(step).__module__.partition(".")[0] != "albumentations" or not step.is_serializable():
        raise ConfigError(f"augment has {type(step).__name__}, which is not albumentations' own: it has no name here")
    return True


def _named(values: Mapping[str, Any]) -> dict[str, Any]:
    name = str(values["__class_fullname__"])
    rest = {key: value for key, value in values.items() if key != "__class_fullname__"}
    if "transforms" in rest:
        rest["transforms"] = [_named(step) for step in rest["transforms"]]
    return {name: rest}


def step_problems(definitions: Sequence[Any]) -> list[str]:
    """Return everything that is wrong with own steps, a sentence each; empty where they can be built."""
    return _Builder(DataConfig(), objects=False).build(definitions, "")[1]


def carried_problems(definitions: Sequence[Any], config: DataConfig, *, boxes: bool) -> list[str]:
    """Return which steps cannot carry masks, or boxes, along; a sentence each."""
    steps = _Builder(config, objects=boxes).build(definitions, "")[0]
    names = [type(step).__name__ for step in _leaves(steps)]
    problems = [f"{name} loses points of outlines - leave it out" for name in names if boxes and name in _LOSES_POINTS]
    crops = [step for step in _leaves(steps) if isinstance(step, A.RandomResizedCrop)]
    if boxes and crops and not (len(crops) == 1 and crops[0] is steps[0] and crops[0].p == 1):
        problems.append("RandomResizedCrop of pictures with boxes comes once, as the first step, with p: 1")
    if config.tiled:
        problems.append("windows are cut by the presets - pass --augment none, light, standard or heavy with --tile")
    return problems


def own_steps(definitions: Sequence[Any], config: DataConfig, *, objects: bool) -> list[Step]:
    """Return own steps, and one that ends at the network's size.

    Args:
        definitions: By name and arguments.
        config: The target.
        objects: Whether pictures have objects: dropouts and bends that tell what becomes of them are taken then.

    Raises:
        ConfigError: With everything that is wrong.
    """
    steps, problems = _Builder(config, objects=objects).build(definitions, "")
    if problems:
        raise ConfigError(gather(problems))
    return [*steps, Ending(config)]


def certain(steps: Sequence[Step]) -> list[Step]:
    """Return a copy of some steps of which each that can happen does, to be tried out."""
    copies = copy.deepcopy(list(steps))
    for step in copies:
        if isinstance(step, A.BaseCompose):
            step.transforms = certain(step.transforms)
        step.p = 1.0 if step.p > 0 else 0.0
    return copies


def _leaves(steps: Sequence[Step]) -> Iterator[Step]:
    for step in steps:
        if isinstance(step, A.BaseCompose):
            yield from _leaves(step.transforms)
        else:
            yield step


@lru_cache(maxsize=1)
def _known() -> dict[str, type[Any]]:
    """Return albumentations' transforms of pictures by name."""
    bases = {"BasicTransform", "DualTransform", "ImageOnlyTransform"}
    return {
        name: value for name, value in vars(A).items()
        if inspect.isclass(value) and issubclass(value, A.ImageOnlyTransform | A.DualTransform) and name not in bases
        and not issubclass(value, A.Transform3D)
    }  # fmt: skip


class _Builder:
    """Makes steps of their definitions; what is wrong is gathered.

    Args:
        config: The target.
        objects: See `own_steps`.
    """

    def __init__(self, config: DataConfig, *, objects: bool) -> None:
        self.config, self.objects = config, objects
        self.problems: list[str] = []

    def build(self, definitions: Any, where: str) -> tuple[list[Step], list[str]]:
        """Return the steps that can be built, and what is wrong with the others."""
        if not isinstance(definitions, list | tuple) or not definitions:
            self.problems.append(f"--augment{where}: expected a list of steps, got {shown(definitions)}")
            return [], self.problems
        steps = [self._step(step, f"{where} step {number + 1}") for number, step in enumerate(definitions)]
        return [step for step in steps if step is not None], self.problems

    def _step(self, definition: Any, where: str) -> Step | None:
        name: Any
        arguments: Any
        if isinstance(definition, str):
            name, arguments = definition, None
        elif isinstance(definition, Mapping) and len(definition) == 1:
            name, arguments = next(iter(definition.items()))
        else:
            self._refuse(where, f"expected a name or {{name: arguments}}, got {shown(definition)}")
            return None
        name = str(name)
        if name in _ELSEWHERE:
            self._refuse(where, f"{name} has no place here: {_ELSEWHERE[name]}")
            return None
        if name not in GROUPS and name not in _known():
            self._refuse(where, f"albumentations has no transform {name!r} of a picture."
                                f"{did_you_mean(name, (*GROUPS, *_known()))}")  # fmt: skip
            return None
        if name in GROUPS and isinstance(arguments, list | tuple):
            arguments = {"transforms": arguments}
        if not isinstance(arguments, Mapping | None):
            self._refuse(where, f"{name} gets {shown(arguments)}, expected its arguments by name")
            return None
        return self._made(name, dict(arguments or {}), where)

    def _made(self, name: str, arguments: dict[str, Any], where: str) -> Step | None:
        group = name in GROUPS
        kind = getattr(A, name) if group else self._kind(name, where)
        parameters = [key for key in inspect.signature(getattr(A, name).__init__).parameters if key != "self"]
        if _FOREIGN & set(parameters):
            self._refuse(where, f"{name} needs more than the picture: {', '.join(sorted(_FOREIGN & set(parameters)))}")
            return None
        known = ["p", "transforms", *(key for key in parameters if key in ("n", "replace"))] if group else parameters
        strange = [key for key in arguments if key not in known]
        for key in strange:
            self._refuse(where, f"{name} has no argument {key!r}.{did_you_mean(key, known)} "
                                f"Known: {', '.join(known)}")  # fmt: skip
        if group:
            count = len(self.problems)
            arguments["transforms"] = self.build(arguments.get("transforms"), f"{where} ({name})")[0]
            if len(self.problems) > count:
                return None
        if strange:
            return None
        values = arguments if group else {**self._usual(name, arguments), **_constants(arguments)}
        try:
            step, said = _heard(kind, values)
        except Exception as error:  # what albumentations and pydantic raise of a value is theirs
            self._refuse(where, f"{name} refuses its arguments ({_reason(error)})")
            return None
        new = said - _advice(kind) if said else said
        if new:  # albumentations only warns where it takes something else than what it was given
            self._refuse(where, f"{name} does not take its arguments as they are ({one_line(min(new))})")
            return None
        besides = set() if group else set(step.targets_as_params) - {"image"}
        if besides:
            self._refuse(where, f"{name} needs more than the picture: {', '.join(sorted(besides))}")
            return None
        return step

    def _kind(self, name: str, where: str) -> type[Any]:
        """Return the class of a step; where the package has one that does more, that one."""
        if name == "RandomResizedCrop":
            return RandomBox
        if self.objects and name in ("CoarseDropout", "ElasticTransform") and "(" not in where:
            return Blots if name == "CoarseDropout" else Elastic
        return _known()[name]

    def _usual(self, name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Return what a step is given where it does not say otherwise: sizes, filters, and the class of a filling."""
        height, width = self.config.image_size
        signature = inspect.signature(getattr(A, name).__init__).parameters
        usual: dict[str, Any] = {"size": (height, width), "height": height, "width": width}
        values = {key: value for key, value in usual.items()
                  if key in signature and signature[key].default is inspect.Parameter.empty}  # fmt: skip
        if "area_for_downscale" in signature:
            values["area_for_downscale"] = "image"
        if "interpolation" in signature and "area_for_downscale" in signature:
            values["interpolation"] = INTERPOLATIONS[self.config.interpolation]
        if "fill_mask" in signature and not self.objects:
            values["fill_mask"] = IGNORED
        return {key: value for key, value in values.items() if key not in arguments}

    def _refuse(self, where: str, what: str) -> None:
        self.problems.append(f"--augment{where}: {what}")


def _constants(value: Any) -> Any:
    """Return values with OpenCV's constants for their names, and tuples for lists."""
    if isinstance(value, Mapping):
        return {key: _constants(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return tuple(_constants(part) for part in value)
    if isinstance(value, str) and value.startswith(_CONSTANTS) and isinstance(vars(cv2).get(value), int):
        return vars(cv2)[value]
    return value


def _reason(error: Exception) -> str:
    """Return what was wrong in one line: of pydantic, which albumentations asks, a field and its complaint."""
    cause = error.__cause__ or error.__context__
    if not isinstance(cause, ValidationError):
        return first_line(error)
    complaint = cause.errors()[0]
    field = f"{complaint['loc'][0]}: " if complaint["loc"] else ""
    return f"{field}{complaint['msg']}"


def _heard(kind: type[Any], values: Mapping[str, Any]) -> tuple[Step, set[str]]:
    """Return a step, and what was warned of while it was made."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        step = kind(**values)
    return step, {str(one.message) for one in caught}


def _advice(kind: type[Any]) -> set[str]:
    """Return what a step says whatever its arguments, such as that another one is faster."""
    try:
        return _heard(kind, {})[1]
    except (TypeError, ValueError):  # it needs some
        return set()
