"""Own augmentations: checked whole before anything runs, always at the network's size, and by the seed alone."""

import warnings

import albumentations as A
import cv2
import numpy as np
import pytest

from transferkit.core.errors import ConfigError
from transferkit.core.records import DataConfig
from transferkit.data.augment.custom import _known, carried_problems, definitions_of, own_steps, step_problems
from transferkit.data.augment.presets import Blots, Elastic, RandomBox
from transferkit.data.augment.transform import eval_transform, train_transform
from transferkit.data.masks.annotation import Annotation

CONFIG = DataConfig(image_size=(24, 32))
STEPS = [
    {"RandomResizedCrop": {"scale": [0.5, 1.0]}},
    "HorizontalFlip",
    {"OneOf": {"transforms": [{"Affine": {"rotate": [-20, 20]}}, {"GaussNoise": {"std_range": [0.1, 0.2]}}], "p": 0.8}},
    {"Sequential": {"transforms": [{"ColorJitter": {"p": 1}}, "ChannelShuffle"], "p": 0.5}},
]


def picture(height=70, width=90, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(("steps", "words"), [
    (["HorizontalFlp"], "step 1: albumentations has no transform 'HorizontalFlp' .* mean 'HorizontalFlip'"),
    (["os.system"], "albumentations has no transform 'os.system'"),
    (["__import__"], "albumentations has no transform '__import__'"),
    (["BasicTransform"], "albumentations has no transform 'BasicTransform'"),
    (["CenterCrop3D"], "albumentations has no transform 'CenterCrop3D'"),
    ([{"Affine": {"rotat": 3}}], "Affine has no argument 'rotat'. Did you mean 'rotate'"),  # fault 42
    ([{"OneOf": [{"Affine": {"rotat": 3}}]}], r"step 1 \(OneOf\) step 1: Affine has no argument"),
    ([{"OneOf": {"transforms": ["HorizontalFlip"], "q": 1}}], "OneOf has no argument 'q'"),
    ([{"OneOf": {"p": 1}}], r"step 1 \(OneOf\): expected a list of steps, got None"),
    ([{"SomeOf": {"transforms": ["HorizontalFlip"], "n": 3}}], "SomeOf does not take its arguments as they are"),
    ([{"Affine": {"rotate": "far"}}], "Affine refuses its arguments .rotate: "),
    ([{"HorizontalFlip": {"p": 2}}], "HorizontalFlip refuses its arguments .p: "),
    ([{"RandomSizedCrop": {}}], "RandomSizedCrop refuses its arguments .min_max_height: "),
    ([{"HorizontalFlip": 0.5}], "HorizontalFlip gets 0.5, expected its arguments by name"),
    ([3], "expected a name or {name: arguments}, got 3"),
    ([], "expected a list of steps"),
    (["Lambda"], "code cannot be named"), (["Normalize"], "normalised afterwards"),
    (["FDA"], "needs more than the picture: .*read_fn"), (["TextImage"], "needs more than the picture: font_path"),
    (["MaskDropout"], "needs more than the picture: mask"), (["BBoxSafeRandomCrop"], "it draws by boxes"),
])  # fmt: skip
def test_refused(steps, words):
    with pytest.raises(ConfigError, match=words):
        own_steps(steps, CONFIG, objects=False)


def test_every_mistake_is_told_at_once():
    assert len(step_problems(["Flip", {"Affine": {"a": 1, "b": 2}}, {"OneOf": ["Flap"]}])) == 4


def test_every_transform_by_name_is_a_function_of_the_seed_and_ends_at_the_size():
    """Whatever albumentations has: it is refused before, or gives pictures of the size, twice the same."""
    tried = 0
    for name in _known():
        if step_problems([name]) or name in ("Crop",):  # whose box is that of a larger picture
            continue
        transform = train_transform([{name: {"p": 1}}], CONFIG)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            results = [[transform(picture(), seed) for seed in (0, 1, 2**64 + 5, -1)] for _ in range(2)]
        assert all(np.array_equal(one, other) for one, other in zip(*results, strict=True)), name
        assert {(result.shape, result.dtype) for result in results[0]} == {((24, 32, 3), np.dtype(np.uint8))}, name
        tried += 1
    assert tried > 70


def test_seeds_and_shapes():
    transform = train_transform(STEPS, CONFIG)
    views = [transform(picture(), seed) for seed in range(8)]
    assert len({view.tobytes() for view in views}) == 8
    again = train_transform(STEPS, CONFIG)
    assert all(np.array_equal(view, again(picture(), seed)) for seed, view in enumerate(views))
    for shape in [(1, 1), (2, 200), (300, 3)]:
        assert transform(picture(*shape), 1).shape == (24, 32, 3)


def test_what_keeps_its_size_is_shown_as_in_evaluation():
    mirrored = train_transform([{"HorizontalFlip": {"p": 1}}], CONFIG)(picture(), 0)
    expected = eval_transform(CONFIG)(np.ascontiguousarray(picture()[:, ::-1]))
    assert np.array_equal(mirrored, expected)


def test_sizes_and_filters_that_are_not_named_are_the_networks():
    crop, resize, ending = own_steps(["RandomResizedCrop", "Resize"], CONFIG, objects=False)
    assert isinstance(crop, RandomBox) and crop.size == (24, 32)
    assert (resize.height, resize.width, resize.area_for_downscale) == (24, 32, "image")
    checker = (np.indices((96, 128)).sum(axis=0) % 2 * 255).astype(np.uint8)[..., None].repeat(3, axis=2)
    for steps in (["Resize"], [{"RandomResizedCrop": {"scale": [1, 1], "ratio": [4 / 3, 4 / 3]}}]):
        assert set(np.unique(train_transform(steps, CONFIG)(checker, 0))) <= {127, 128}  # averaged, not sampled
    assert ending.apply(checker[:24, :32]) is not None


def test_constants_have_names():
    (step, _) = own_steps([{"Affine": {"border_mode": "BORDER_REFLECT_101"}}], CONFIG, objects=False)
    assert step.border_mode == cv2.BORDER_REFLECT_101
    assert step_problems([{"Affine": {"border_mode": "BORDER_NOWHERE"}}])


def test_objects_of_albumentations_say_the_same_as_names():
    steps = [A.RandomResizedCrop((24, 32), (0.5, 1.0)), A.OneOf([A.HorizontalFlip(p=1), A.Affine(rotate=(-9, 9))], p=1)]
    named = definitions_of(A.Compose(steps))
    assert named == definitions_of(steps)
    assert list(named[1]) == ["OneOf"] and list(named[1]["OneOf"]["transforms"][1]) == ["Affine"]
    ours, theirs = train_transform(A.Compose(steps), CONFIG), train_transform(named, CONFIG)
    assert all(np.array_equal(ours(picture(), seed), theirs(picture(), seed)) for seed in range(5))
    assert definitions_of(A.HorizontalFlip(p=1)) == [{"HorizontalFlip": {"p": 1}}]


class Own(A.ImageOnlyTransform):
    """Somebody's."""

    def apply(self, img, **params):
        return img


@pytest.mark.parametrize("steps", [[Own()], [A.Lambda(image=np.flipud, name="x")], 7, [], "light2"])
def test_what_has_no_name_is_refused(steps):
    with pytest.raises(ConfigError):
        train_transform(steps, CONFIG)


@pytest.mark.parametrize(("steps", "words"), [
    ([{"ToGray": {"num_output_channels": 1, "p": 1}}], r"makes of a picture of 70 x 90 pixels \(24, 32\) of uint8"),
    ([{"RandomCrop": {"height": 200, "width": 5}}], "cannot be done to a picture of 70 x 90 pixels: CropSizeError"),
])  # fmt: skip
def test_what_leaves_no_picture_is_told(steps, words):
    with pytest.raises(ConfigError, match=words):
        train_transform(steps, CONFIG)(picture(), 0)


def test_what_identifies_features_says_the_arguments():
    first, other, nested = (
        train_transform([{"OneOf": [{"Affine": {"rotate": [-turn, turn]}}, more]}], CONFIG).describe()
        for turn, more in ((10, "HorizontalFlip"), (11, "HorizontalFlip"), (10, "VerticalFlip"))
    )
    assert first != other and first != nested
    assert (
        first == train_transform([{"OneOf": [{"Affine": {"rotate": [-10, 10]}}, "HorizontalFlip"]}], CONFIG).describe()
    )


def test_steps_that_are_sure_are_tried():
    rare = train_transform([{"OneOf": {"transforms": [{"InvertImg": {"p": 0.01}}], "p": 0.01}}], CONFIG)
    dark = np.zeros((40, 40, 3), np.uint8)
    assert rare.certain()(dark, 0).min() == 255
    assert max(rare(dark, seed).max() for seed in range(20)) == 0
    never = train_transform([{"InvertImg": {"p": 0}}], CONFIG)
    assert never.certain()(dark, 0).max() == 0


def test_masks_go_along_and_have_no_class_where_a_step_fills():
    image, mask = np.full((60, 80, 3), 200, np.uint8), np.full((60, 80), 3, np.uint8)
    turned = train_transform([{"RandomResizedCrop": {}}, {"Affine": {"rotate": [40, 40], "p": 1}}], CONFIG)
    shown, answer = turned.carry(image, Annotation(mask=mask), 1)
    assert set(np.unique(answer.mask)) == {3, 255}
    assert ((shown.max(axis=2) < 100) <= (answer.mask == 255)).all()
    dropped = train_transform([{"CoarseDropout": {"p": 1}}, "Resize"], CONFIG).carry(image, Annotation(mask=mask), 1)
    assert 255 in dropped[1].mask
    assert np.array_equal(turned(image, 1), shown)


def boxed(height=60, width=80):
    return Annotation(
        boxes=np.array([[20, 10, 60, 50]], np.float32),
        classes=np.array([1]),
        crowd=np.array([False]),
        size=(height, width),
    )


def test_boxes_go_along():
    config = DataConfig(image_size=(60, 80), crop_mode="pad", crop_pct=1.0)
    image = np.zeros((60, 80, 3), np.uint8)
    image[10:50, 20:60] = 255
    steps = [{"RandomResizedCrop": {"scale": [0.8, 1]}}, {"HorizontalFlip": {"p": 1}}, {"VerticalFlip": {"p": 0.5}}]
    for seed in range(10):
        shown, answer = train_transform(steps, config).carry(image, boxed(), seed)
        rows, columns = np.nonzero(shown[..., 0] > 127)
        expected = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert np.abs(answer.boxes[0] - expected).max() <= 1.5


def test_steps_of_pictures_with_objects():
    steps = own_steps(["CoarseDropout", "ElasticTransform", {"OneOf": ["CoarseDropout"]}], CONFIG, objects=True)
    assert isinstance(steps[0], Blots) and isinstance(steps[1], Elastic)
    assert not isinstance(steps[2].transforms[0], Blots)


@pytest.mark.parametrize(("steps", "config", "boxes", "words"), [
    (["HorizontalFlip", "RandomResizedCrop"], CONFIG, True, "comes once, as the first step"),
    ([{"OneOf": ["RandomResizedCrop", "HorizontalFlip"]}], CONFIG, True, "comes once, as the first step"),
    ([{"RandomResizedCrop": {"p": 0.5}}], CONFIG, True, "with p: 1"),
    (["HorizontalFlip"], CONFIG.in_windows(), False, "windows are cut by the presets"),
])  # fmt: skip
def test_what_cannot_be_carried(steps, config, boxes, words):
    (problem,) = carried_problems(steps, config, boxes=boxes)
    assert words in problem


GEOMETRY = {
    "Crop": {"x_max": 120, "y_max": 90}, "CropAndPad": {"percent": [-0.1, 0.1]}, "LongestMaxSize": {"max_size": 100},
    "GridElasticDeform": {"num_grid_xy": [4, 4], "magnitude": 4}, "SmallestMaxSize": {"max_size": 100},
    "RandomSizedCrop": {"min_max_height": [60, 90]}, "RandomCrop": {"height": 80, "width": 100},
    "CenterCrop": {"height": 80, "width": 100}, "PadIfNeeded": {"min_height": 110, "min_width": 140},
    "Affine": {"rotate": [-30, 30], "shear": [-10, 10]}, "ElasticTransform": {"alpha": 60, "sigma": 8},
}  # fmt: skip
COVERS = {"CoarseDropout", "Erasing", "FrequencyMasking", "GridDropout", "TimeMasking", "XYMasking"}


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_every_step_moves_boxes_and_masks_as_it_moves_pixels():
    """A bright rectangle goes through each step that moves pixels; what is bright then says where it is."""
    config = DataConfig(image_size=(96, 128), crop_mode="pad", crop_pct=1.0)
    image = np.zeros((96, 128, 3), np.uint8)
    image[40:62, 50:80] = 255
    annotation = Annotation(
        boxes=np.array([[50, 40, 80, 62]], np.float32), classes=np.array([1]), crowd=np.array([False]), size=(96, 128)
    )
    tried = 0
    for name, kind in _known().items():
        steps = [{name: {**GEOMETRY.get(name, {}), "p": 1}}]
        if not issubclass(kind, A.DualTransform) or step_problems(steps) or name in COVERS:
            continue
        transform = train_transform(steps, config)
        for seed in range(6):
            shown, carried = transform.carry(image, Annotation(mask=(image[..., 0] > 127).astype(np.uint8)), seed)
            known = carried.mask != 255
            assert ((shown[..., 0] > 127) != (carried.mask == 1))[known].mean() < 0.02, name
            if carried_problems(steps, config, boxes=True):
                continue
            shown, carried = transform.carry(image, annotation, seed)
            rows, columns = np.nonzero(shown[..., 0] > 127)
            expected = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert np.abs(carried.boxes[0] - expected).max() <= 2.5, name
        tried += 1
    assert tried > 30
    assert "loses points" in carried_problems([{"OneOf": ["ThinPlateSpline"]}], config, boxes=True)[0]


def test_objects_that_a_crop_loses_take_their_outlines_along():
    """Boxes and numbers of pixels stay one to one, whichever of two objects is left."""
    config = DataConfig(image_size=(40, 40), crop_mode="pad", crop_pct=1.0)
    numbers = np.zeros((80, 80), np.uint16)
    numbers[5:30, 5:30], numbers[50:75, 50:75] = 1, 2
    annotation = Annotation(
        boxes=np.array([[5, 5, 30, 30], [50, 50, 75, 75]], np.float32), classes=np.array([0, 1]),
        crowd=np.array([False, False]), size=(80, 80), instances=numbers,
    )  # fmt: skip
    counts = set()
    for seed in range(30):
        transform = train_transform([{"RandomCrop": {"height": 40, "width": 40}}, "HorizontalFlip"], config)
        _, carried = transform.carry(picture(80, 80), annotation, seed)
        counts.add(len(carried.boxes))
        assert set(np.unique(carried.instances)) - {0} == set(range(1, len(carried.boxes) + 1))
        for number, (left, top, right, bottom) in enumerate(carried.boxes):
            rows, columns = np.nonzero(carried.instances == number + 1)
            assert (left, top, right, bottom) == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    assert counts == {1, 2} or counts == {1}


def test_usual_probabilities_are_the_transforms_own():
    resize, rotate = own_steps(["Resize", "RandomRotate90"], CONFIG, objects=False)[:2]
    assert (resize.p, rotate.p) == (A.Resize(1, 1).p, A.RandomRotate90().p) == (1, 1)


def test_arguments_of_older_releases_are_told():
    (problem,) = step_problems([{"GaussNoise": {"var_limit": [10, 50]}}])
    assert "GaussNoise has no argument 'var_limit'" in problem and "std_range" in problem
