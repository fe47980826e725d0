"""The `store` verb: prints what the feature store and the pixel store hold, what is wrong there, what was removed."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

from transferkit.core.database import cache_bytes
from transferkit.core.errors import StorageError, StoreError
from transferkit.core.files import user_cache
from transferkit.data.pixels.sets import pixel_root
from transferkit.data.pixels.upkeep import PixelSet, Stray, clean_pixels, describe_pixels, verify_pixels
from transferkit.features.store.store import FeatureStore
from transferkit.features.store.upkeep import Problem, Removal, describe, gc, verify
from transferkit.options.features import StoreConfig
from transferkit.show.progress import counting_bar, output_console, progress_console

__all__ = ["print_store"]


def print_store(config: StoreConfig) -> None:
    """List, verify or clean the feature store and the pixel store, and print what came of it on standard output.

    Raises:
        StoreError: `verify` met damage.
        StorageError: A store cannot be read or written.
    """
    store, pixels, console = FeatureStore(config.store), _pixels(), output_console()
    if config.action == "list":
        _list(store, console)
        _list_pixels(pixels, console)
    elif config.action == "verify":
        with counting_bar(progress_console(config.quiet), "reading shards") as progress:
            problems = verify(store, progress)
        with counting_bar(progress_console(config.quiet), "reading pixels") as progress:
            strays = verify_pixels(pixels, progress) if pixels is not None else []
        _tell_damage(store, pixels, [*problems, *strays], console)
    else:
        _gc(store, pixels, config, console)


def _pixels() -> Path | None:
    """Return the pixel store's directory; ``None`` where this user can have none."""
    try:
        return pixel_root()
    except StorageError:
        return None


def _list(store: FeatureStore, console: Console) -> None:
    sets = describe(store)
    table = Table(title=str(store.root), title_justify="left", title_style="bold")
    for column in ("features", "size", "view", "precision", "rows", "MB", "used"):
        table.add_column(
            column, justify="right" if column in ("rows", "MB") else "left", no_wrap=column != "features",
            overflow="fold",
        )  # fmt: skip
    for each in sorted(sets, key=lambda item: item.last_used, reverse=True):
        spec = each.spec
        config = spec.transform.get("config", {})
        table.add_row(
            f"{spec.backbone} {spec.layer} ({spec.pool})", "x".join(map(str, config.get("image_size", ()))),
            str(spec.transform.get("name", "")), spec.precision, f"{each.rows:,}", f"{each.bytes / 1e6:,.1f}",
            _ago(each.last_used),
        )  # fmt: skip
    console.print(table)
    console.print(f"{len(sets)} sets, {sum(each.bytes for each in sets) / 1e6:,.1f} MB")
    if size := cache_bytes():
        console.print(
            f"besides, {size / 1e6:,.1f} MB of what is known of picture files, in {user_cache()}/*.db: to delete them "
            "costs time alone",
            soft_wrap=True,
        )


def _list_pixels(root: Path | None, console: Console) -> None:
    sets = _pixel_sets(root)
    if root is None or not sets:
        return
    table = Table(title=str(root), title_justify="left", title_style="bold")
    for column in ("pixels", "side", "otherwise", "pictures", "MB", "used"):
        numeric = column in ("side", "pictures", "MB")
        table.add_column(column, justify="right" if numeric else "left", no_wrap=column != "pixels", overflow="fold")
    for each in sorted(sets, key=lambda item: item.last_used, reverse=True):
        spec = each.spec
        side = "?" if spec is None else "full" if spec.side is None else str(spec.side)
        decoder = each.folder if spec is None else f"pillow {spec.versions['pillow']}"
        otherwise = "" if spec is None else ", ".join(f"{name} {value}" for name, value in spec.decoding.items())
        table.add_row(
            decoder, side, otherwise, f"{each.pictures:,}", f"{each.bytes / 1e6:,.1f}", _ago(each.last_used)
        )  # fmt: skip
    console.print(table)
    console.print(f"{len(sets)} sets of pixels, {sum(each.bytes for each in sets) / 1e6:,.1f} MB")


def _pixel_sets(root: Path | None) -> list[PixelSet]:
    return [] if root is None else describe_pixels(root)


def _tell_damage(
    store: FeatureStore, pixels: Path | None, problems: Sequence[Problem | Stray], console: Console
) -> None:
    for problem in problems:
        what = problem.why if isinstance(problem, Stray) else problem.what
        console.print(f"{problem.folder}/{problem.file} {what}", soft_wrap=True)
    if problems:
        places = {str(pixels if isinstance(problem, Stray) else store.root): None for problem in problems}
        raise StoreError(
            f"{len(problems)} findings in {' and '.join(map(repr, places))} - `transferkit store gc` removes them; "
            "what goes with them is computed again when it is asked for"
        )
    sets, of_pixels = describe(store), _pixel_sets(pixels)
    also = f"; {sum(each.pictures for each in of_pixels):,} decoded pictures" if of_pixels else ""
    console.print(f"{len(sets)} sets, {sum(each.rows for each in sets):,} rows{also}: every shard is what was written")


def _gc(store: FeatureStore, pixels: Path | None, config: StoreConfig, console: Console) -> None:
    report = gc(store, unused_days=config.unused_days, dry_run=config.dry_run)
    strays = clean_pixels(pixels, unused_days=config.unused_days, dry_run=config.dry_run) if pixels is not None else []
    removed: list[Removal | Stray] = [*report.removed, *strays]
    for removal in removed:
        place = f"{removal.folder}/{removal.file}" if removal.file else removal.folder
        console.print(f"{place}: {removal.why}", soft_wrap=True)
    for sentence in report.skipped:
        console.print(sentence, soft_wrap=True)
    verb = "would be freed" if config.dry_run else "freed"
    console.print(f"{sum(removal.bytes for removal in removed) / 1e6:,.1f} MB {verb}, {len(removed)} things")


def _ago(moment: datetime) -> str:
    hours = (datetime.now(UTC) - moment).total_seconds() / 3600
    return f"{hours / 24:.0f} days ago" if hours >= 48 else f"{hours:.0f} h ago" if hours >= 1 else "now"
