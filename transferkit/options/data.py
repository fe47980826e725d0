"""The options that every verb on pictures shares: where they come from and how they are split."""

from __future__ import annotations

from dataclasses import dataclass

from transferkit.options.fields import option

__all__ = ["REQUIRED", "DataOptions"]

REQUIRED = ""  # the empty string is never a valid path, so it can stand for "not given"


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Where pictures come from and how they are split."""

    data: str = option(
        REQUIRED, "folder/<class>/*, folder/{train,val,test}/<class>/*, a CSV/Parquet manifest, or 'sample'"
    )
    task: str = option("auto", "classification, or the name of a registered task; auto: classification")
    val_split: float = option(0.15, "share of a folder without splits that becomes the validation split, [0, 1)")
    test_split: float = option(0.15, "share of a folder without splits that becomes the test split, [0, 1)")
    skip_bad: bool = option(False, "drop unreadable pictures before splitting and list them, instead of stopping")
    allow_empty_classes: bool = option(False, "keep a class without pictures as an output of the model")
    allow_leaks: bool = option(False, "go on although the same picture is in two splits or has two labels")
    seed: int = option(0, "seed of splits, initialisation, sample order and augmentation")

    def data_problems(self) -> list[str]:
        """Return what is wrong with these options."""
        found = [] if self.data else ["--data is missing, expected a folder, a manifest or 'sample'"]
        for name in ("val_split", "test_split"):
            value = getattr(self, name)
            if not 0.0 <= value < 1.0:
                found.append(f"--{name.replace('_', '-')} is {value}, expected a share in [0, 1)")
        if not found and self.val_split + self.test_split >= 1.0:
            found.append(f"--val-split {self.val_split} and --test-split {self.test_split} leave nothing to train on")
        if not 0 <= self.seed < 2**32:
            found.append(f"--seed is {self.seed}, expected a whole number in [0, 2**32)")
        return found
