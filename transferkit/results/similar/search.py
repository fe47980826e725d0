"""The search itself: pictures in, for each of them those of a gallery that a model finds most like it."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from transferkit.core.errors import DataError
from transferkit.core.records import Decoding
from transferkit.data.batches.dataset import Picture
from transferkit.data.images.decode import ImageInfo, UnreadableImage, decode_with_info, pixels_digest
from transferkit.data.images.known_files import hash_files
from transferkit.data.images.reading import ReadResult
from transferkit.data.images.sketch import sketch_of
from transferkit.data.images.sketchbook import Sketchbook
from transferkit.data.index.copies import equal_pictures
from transferkit.machine.cores import available_cores
from transferkit.results.predict.views import Source, name_sources
from transferkit.results.similar.gallery import BLOCK, Gallery, Progress
from transferkit.results.similar.nearest import Nearest

__all__ = ["Match", "Query", "Similar", "queries_of", "search"]

ALIKE = 0.9
"""Cosine below which two files are not looked at for equal pixels: then features hardly differ."""

SPARE = 2
"""Pictures more than are asked for that are looked for, so that copies of the picture itself can be left out."""


@dataclass(frozen=True)
class Match:
    """A picture of the gallery.

    Attributes:
        path: Its file.
        label: Its answer as the data have it, such as its class; empty where there is none.
        split: ``"train"``, ``"val"`` or ``"test"``; empty where the data have no splits.
        similarity: Cosine with the picture that was asked about, in [-1, 1].
        same: Whether it is that picture: the same bytes, or the same pixels.
    """

    path: str
    label: str
    split: str
    similarity: float
    same: bool = False


@dataclass(frozen=True)
class Similar:
    """What was found for one picture.

    Attributes:
        path: The picture that was asked about.
        matches: The most similar ones, the most similar first; of equally similar ones the first of the gallery.
        same: Files of the gallery that are the picture itself, left out of `matches` unless they were asked for.
        error: Why the picture could not be read; ``None`` where it could.
    """

    path: str
    matches: tuple[Match, ...] = ()
    same: tuple[str, ...] = ()
    error: str | None = None


@dataclass(frozen=True)
class Query:
    """A picture that is asked about: known by its content, with its pixels where it is no file; or why it is none."""

    name: str
    picture: Picture | None
    read: ReadResult | None = None
    error: str | None = None


def queries_of(sources: Iterable[Source], decoding: Decoding, *, rescan: bool = False) -> list[Query]:
    """Return pictures that can be asked about.

    Args:
        sources: Paths, bytes of files, Pillow pictures or uint8 arrays.
        decoding: How they are decoded.
        rescan: Read every file, instead of trusting what is known of files that are as they were.

    Raises:
        ConfigError: A source is none of these.
    """
    pictures = list(name_sources(sources, decoding))
    files = [picture.name for picture in pictures if picture.content is None and picture.error is None]
    results = iter(hash_files(files, rescan=rescan, workers=available_cores()))
    return [
        _of_file(next(results)) if picture.content is None and picture.error is None else _of_memory(picture, decoding)
        for picture in pictures
    ]


def _of_file(result: ReadResult) -> Query:
    if result.sha256 is None:
        return Query(result.path, None, error=str(result.error))
    return Query(result.path, Picture(result.path, result.sha256), result)


def _of_memory(picture: Picture, decoding: Decoding) -> Query:
    """Return a picture that is no file, decoded at full size: its pixels are looked for among files."""
    try:
        if picture.error is not None:
            raise picture.error
        if isinstance(picture.content, bytes):
            sha256 = hashlib.sha256(picture.content).hexdigest()
            pixels, info = decode_with_info(picture.content, decoding=decoding, name=picture.name)
        else:
            pixels = np.asarray(picture.content)
            sha256 = pixels_digest(pixels)
            one_colour = bool((pixels == pixels[0, 0]).all())
            info = ImageInfo("", "RGB", pixels.shape[1], pixels.shape[0], False, False, one_colour)
    except UnreadableImage as error:
        return Query(picture.name, None, error=error.reason)
    read = ReadResult(picture.name, sha256, None, info, pixels, sketch_of(pixels, info))
    return Query(picture.name, replace(picture, sha256=sha256), read)


def search(
    gallery: Gallery,
    queries: Sequence[Query],
    top: int,
    *,
    with_same: bool = False,
    decoding: Decoding,
    progress: Progress | None = None,
) -> list[Similar]:
    """Return what is most similar to each picture, in order. The search is exact: every picture is compared.

    Args:
        gallery: What is searched.
        queries: The pictures that are asked about.
        top: How many to find, at least 1; where the gallery has fewer, there are fewer.
        with_same: Whether the picture itself counts.
        decoding: How pictures are decoded.
        progress: Called with pictures compared and pictures in all.

    Raises:
        DataError: No picture of the gallery can be decoded.
        TransferkitError: As `ModelFeatures.of` says.
    """
    known: defaultdict[str, list[int]] = defaultdict(list)
    for at, entry in enumerate(gallery.entries):
        known[entry.sha256].append(at)
    searched = _Search(gallery, known, Sketchbook(decoding), top, with_same, progress)
    results: list[Similar] = []
    for start in range(0, len(queries), BLOCK):
        results += searched.of(queries[start : start + BLOCK])
    return results


@dataclass
class _Search:
    """A search of one gallery, for any number of pictures."""

    gallery: Gallery
    known: defaultdict[str, list[int]]
    book: Sketchbook
    top: int
    with_same: bool
    progress: Progress | None

    def of(self, queries: Sequence[Query]) -> list[Similar]:
        readable = [query for query in queries if query.picture is not None]
        rows, failures = self.gallery.features.of([query.picture for query in readable if query.picture is not None])
        good = [at for at in range(len(readable)) if at not in failures]
        answers = {id(readable[at]): Similar(readable[at].name, error=reason) for at, reason in failures.items()}
        pending, spare = good, SPARE
        while pending:  # once, but for pictures of which the gallery has many copies
            nearest = Nearest(
                rows[pending],
                self.top + (0 if self.with_same else spare),
                [[] if self.with_same else self.known.get(_sha256(readable[at]), []) for at in pending],
            )
            for places, block in self.gallery.blocks(self.progress):
                nearest.see(places, block)
            if len(self.gallery.failures) == len(self.gallery.entries):
                reason = self.gallery.failures[0]
                raise DataError(f"no picture can be decoded of those to search, such as {self._path(0)!r}: {reason}")
            made = self._told([readable[at] for at in pending], nearest)
            short = [
                number for number, one in enumerate(made)
                if len(one.matches) < self.top and len(nearest.of(number)[0]) == nearest.k
            ]  # fmt: skip
            answers |= {id(readable[at]): one for at, one in zip(pending, made, strict=True)}
            pending, spare = [pending[number] for number in short], 4 * spare
        return [answers.get(id(query)) or Similar(query.name, error=query.error) for query in queries]

    def _path(self, place: int) -> str:
        return self.gallery.entries[place].path

    def _told(self, queries: Sequence[Query], nearest: Nearest) -> list[Similar]:
        """Return the matches of each picture, with copies of the picture marked or left out."""
        entries = self.gallery.entries
        near = {
            int(place) for number in range(len(queries))
            for place, cosine in zip(*nearest.of(number), strict=True) if cosine >= ALIKE
        }  # fmt: skip
        family = self._families(queries, sorted(near))
        made = []
        for number, query in enumerate(queries):
            sha256 = _sha256(query)
            own = family.get(sha256, sha256)
            matches, same = [], [self._path(at) for at in self.known.get(sha256, []) if at not in self.gallery.failures]
            for place, cosine in zip(*nearest.of(number), strict=True):
                entry = entries[place]
                itself = family.get(entry.sha256, entry.sha256) == own
                if itself and entry.path not in same:
                    same.append(entry.path)
                if self.with_same or not itself:
                    matches.append(Match(entry.path, entry.label, entry.split, float(cosine), itself))
            made.append(Similar(query.name, tuple(matches[: self.top]), tuple(same)))
        return made

    def _families(self, queries: Sequence[Query], places: Sequence[int]) -> dict[str, str]:
        """Return what files of equal pixels are known by, of some pictures and those nearest to them."""
        entries = (self.gallery.entries[place] for place in places)
        reads = [query.read for query in queries if query.read is not None]
        files = [*reads, *(ReadResult(entry.path, entry.sha256) for entry in entries)]
        distinct = list({result.sha256: result for result in reversed(files)}.values())
        cores = available_cores()
        return equal_pictures(self.book.complete(distinct, workers=cores), self.book, workers=cores)


def _sha256(query: Query) -> str:
    return "" if query.picture is None else query.picture.sha256
