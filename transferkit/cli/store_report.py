"""The `store` verb: prints what the feature store holds, what is wrong with it, what was removed."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from rich.console import Console
from rich.table import Table

from transferkit.core.database import cache_bytes
from transferkit.core.errors import StoreError
from transferkit.core.files import user_cache
from transferkit.features.store.store import FeatureStore
from transferkit.features.store.upkeep import Problem, describe, gc, verify
from transferkit.options.features import StoreConfig
from transferkit.show.progress import counting_bar, output_console, progress_console

__all__ = ["print_store"]


def print_store(config: StoreConfig) -> None:
    """List, verify or clean the feature store, and print what came of it on standard output.

    Raises:
        StoreError: `verify` met damage.
        StorageError: The store cannot be read or written.
    """
    store, console = FeatureStore(config.store), output_console()
    if config.action == "list":
        _list(store, console)
    elif config.action == "verify":
        with counting_bar(progress_console(config.quiet), "reading shards") as progress:
            problems = verify(store, progress)
        _tell_damage(store, problems, console)
    else:
        _gc(store, config, console)


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


def _tell_damage(store: FeatureStore, problems: Sequence[Problem], console: Console) -> None:
    for problem in problems:
        console.print(f"{problem.folder}/{problem.file} {problem.what}", soft_wrap=True)
    if problems:
        raise StoreError(
            f"{len(problems)} findings in {str(store.root)!r} - `transferkit store gc` removes them; rows that go with "
            "them are computed again when they are asked for"
        )
    sets = describe(store)
    console.print(f"{len(sets)} sets, {sum(each.rows for each in sets):,} rows: every shard is what was written")


def _gc(store: FeatureStore, config: StoreConfig, console: Console) -> None:
    report = gc(store, unused_days=config.unused_days, dry_run=config.dry_run)
    for removal in report.removed:
        place = f"{removal.folder}/{removal.file}" if removal.file else removal.folder
        console.print(f"{place}: {removal.why}", soft_wrap=True)
    for sentence in report.skipped:
        console.print(sentence, soft_wrap=True)
    verb = "would be freed" if config.dry_run else "freed"
    console.print(f"{report.freed / 1e6:,.1f} MB {verb}, {len(report.removed)} things")


def _ago(moment: datetime) -> str:
    hours = (datetime.now(UTC) - moment).total_seconds() / 3600
    return f"{hours / 24:.0f} days ago" if hours >= 48 else f"{hours:.0f} h ago" if hours >= 1 else "now"
