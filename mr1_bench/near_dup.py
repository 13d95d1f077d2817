"""Near-duplicates between a training and a test set, by text and by picture.

Texts are compared by their wording and, apart from it, by their numbers: the same wording with other numbers is a template, which
leaks nothing, and is reported as such. Pictures are compared by the correlation of what remains of a small grey version when its
slow background is taken away, so that re-encoding, resizing, padding and transparency do not hide a copy. All pairs are compared, by
matrix products. This file must not know where sets come from or what is done about a finding.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from mr1_bench.data import Example

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

    Matrix = NDArray[np.float32]

TEXT_THRESHOLD = 0.8
"""Jaccard similarity of word 3-shingles from which two wordings count as the same."""
PARAPHRASE_THRESHOLD = 0.5
"""Jaccard similarity of the sets of words from which, beside the same picture and the same numbers, a question is the same retold."""
IMAGE_THRESHOLD = 0.96
"""Correlation from which two pictures count as the same; see docs/data.md for what lies near it in real sets."""
_SIDE = 32
_SMOOTHING = 1.5
_BACKGROUND = 6
_CHUNK = 512
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_TOKEN = re.compile(r"#|[^\W_]+|[^\w\s.,;:?!()\[\]{}'\"，。；：？！（）、~_$\\]")

Kind = Literal["duplicate", "image", "text", "template"]
_ORDER: dict[str, int] = {"duplicate": 0, "image": 1, "text": 2, "template": 3}


@dataclass(frozen=True, slots=True)
class NearDuplicate:
    """A test item and a training item that are near each other.

    Attributes:
        kind: `duplicate`, same picture and numbers, and the same question or one retold; `image`, the same picture with another
            question; `text`, the same wording and numbers with another picture; `template`, the same wording with other numbers and
            another picture.
        test_id: the test item.
        train_id: the training item; for `text` and `template` the nearest of `matches`.
        text_similarity: Jaccard similarity of the wordings' shingles, 0 to 1.
        image_similarity: correlation of the pictures, -1 to 1.
        same_numbers: whether the questions hold the same numbers.
        matches: how many training items are near this test item in this way; always 1 for `duplicate` and `image`, which have an
            entry a pair.
    """

    kind: Kind
    test_id: str
    train_id: str
    text_similarity: float
    image_similarity: float
    same_numbers: bool
    matches: int = 1


@dataclass(frozen=True, slots=True)
class _Texts:
    """A set's questions, as indices into lists of distinct wordings and distinct number lists."""

    wordings: list[tuple[str, ...]]
    wording_of: list[int]
    numbers_of: list[tuple[str, ...]]

    def wording(self, item: int) -> tuple[str, ...]:
        """The wording of an item."""
        return self.wordings[self.wording_of[item]]


def find_near_duplicates(
    train: Sequence[Example],
    test: Sequence[Example],
    *,
    text_threshold: float = TEXT_THRESHOLD,
    image_threshold: float = IMAGE_THRESHOLD,
) -> list[NearDuplicate]:
    """Compare every test item with every training item.

    Entries come worst first (`duplicate`, `image`, `text`, `template`), then in the test set's order. Memory grows with the number of
    items (4 kB each), not with that of pairs; a picture is decoded once.

    Args:
        train: the training items.
        test: the test items.
        text_threshold: Jaccard similarity from which wordings are the same, above 0.
        image_threshold: correlation from which pictures are the same.

    Raises:
        ValueError: a set is empty, so that finding nothing would mean nothing.
    """
    if not train or not test:
        raise ValueError(f"cannot compare {len(train)} training with {len(test)} test items: both sets need items")
    train_ids, train_texts, train_images = _digest(train)
    test_ids, test_texts, test_images = _digest(test)
    wording_pairs = _near_wordings(train_texts.wordings, test_texts.wordings, text_threshold)

    def entry(kind: Kind, i: int, j: int, text: float, image: float, matches: int = 1) -> NearDuplicate:
        same_numbers = _same_numbers(test_texts.numbers_of[i], train_texts.numbers_of[j])
        return NearDuplicate(kind, test_ids[i], train_ids[j], text, image, same_numbers, matches)

    found: list[tuple[int, NearDuplicate]] = []
    pictured: set[tuple[int, int]] = set()
    for i, j, image in _near_images(train_images, test_images, image_threshold):
        pictured.add((i, j))
        text = _jaccard(_shingles(test_texts.wording(i)), _shingles(train_texts.wording(j)))
        same = _same_question(test_texts, i, train_texts, j, text >= text_threshold)
        found.append((i, entry("duplicate" if same else "image", i, j, text, image)))
    for kind, i, js, text in _near_texts(train_texts, test_texts, wording_pairs, pictured):
        similarities = train_images[js] @ test_images[i]
        best = int(similarities.argmax())
        found.append((i, entry(kind, i, js[best], text, float(similarities[best]), len(js))))
    found.sort(key=lambda item: (_ORDER[item[1].kind], item[0], -item[1].image_similarity))
    return [finding for _, finding in found]


def _digest(examples: Sequence[Example]) -> tuple[list[str], _Texts, Matrix]:
    """Read each example once: ids, texts and one unit vector a picture."""
    import numpy as np

    ids, numbers, wording_of = [], [], []
    wordings: dict[tuple[str, ...], int] = {}
    vectors = np.zeros((len(examples), _SIDE * _SIDE), dtype=np.float32)
    for row, example in enumerate(examples):
        ids.append(example.id)
        wording, values = split_numbers(example.question)
        wording_of.append(wordings.setdefault(wording, len(wordings)))
        numbers.append(values)
        vectors[row] = picture_vector(example.image)
    return ids, _Texts(list(wordings), wording_of, numbers), vectors


def split_numbers(text: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Split a question into its wording (words and signs, numbers replaced by `#`) and its numbers, both normalised.

    Case, spacing and punctuation do not count, and `80.0` is the number `80`.
    """
    plain = unicodedata.normalize("NFKC", text).casefold()
    numbers = tuple(_plain_number(match) for match in _NUMBER.findall(plain))
    return tuple(_TOKEN.findall(_NUMBER.sub(" # ", plain))), numbers


def _plain_number(text: str) -> str:
    whole, _, part = text.partition(".")
    part = part.rstrip("0")
    return (whole.lstrip("0") or "0") + (f".{part}" if part else "")


def _same_numbers(one: tuple[str, ...], other: tuple[str, ...]) -> bool:
    return one == other or Counter(one) == Counter(other)


def _same_question(test: _Texts, i: int, train: _Texts, j: int, near: bool) -> bool:
    """Whether two questions about the same picture are one: the same numbers, and near wordings or the same words retold."""
    if not _same_numbers(test.numbers_of[i], train.numbers_of[j]):
        return False
    # Without numbers a single word ("red") is all the difference there is, so only the stricter measure will do.
    retold = bool(test.numbers_of[i]) and _jaccard(set(test.wording(i)), set(train.wording(j))) >= PARAPHRASE_THRESHOLD
    return near or retold


def _shingles(words: tuple[str, ...]) -> set[tuple[str, ...]]:
    """Runs of three words; the whole of a shorter text."""
    return {words[k : k + 3] for k in range(max(1, len(words) - 2))}


def _jaccard(one: set[Any], other: set[Any]) -> float:
    return len(one & other) / len(one | other)


def picture_vector(picture: Image) -> Matrix:
    """A unit vector that two versions of the same picture share: grey, margins cut, 32 x 32, smoothed, background taken away.

    The dot product of two such vectors is their correlation. A blank picture gives the zero vector, which is near nothing.
    """
    import numpy as np
    from PIL import Image as Pictures
    from PIL import ImageFilter

    grey = picture.convert("L")
    # Margins of near-white differ between exports of the same diagram.
    box = grey.point(lambda value: 255 if value < 200 else 0).getbbox()
    small = grey.crop(box).resize((_SIDE, _SIDE), Pictures.Resampling.BILINEAR)
    # Resizing moves the margin by up to a pixel; thin lines would then miss each other.
    small = small.filter(ImageFilter.GaussianBlur(_SMOOTHING))
    slow = small.filter(ImageFilter.BoxBlur(_BACKGROUND))
    vector = np.asarray(small, dtype=np.float32).ravel() - np.asarray(slow, dtype=np.float32).ravel()
    vector -= vector.mean()
    norm = float(np.linalg.norm(vector))
    # Below one grey level a pixel there is only rounding noise left.
    return vector / norm if norm > _SIDE else np.zeros_like(vector)


def _near_images(train: Matrix, test: Matrix, threshold: float) -> list[tuple[int, int, float]]:
    """All (test, train, correlation) of at least the threshold."""
    import numpy as np

    pairs: list[tuple[int, int, float]] = []
    for start in range(0, len(test), _CHUNK):
        block = test[start : start + _CHUNK] @ train.T
        for i, j in np.argwhere(block >= threshold).tolist():
            pairs.append((start + i, j, float(block[i, j])))
    return pairs


def _near_wordings(train: list[tuple[str, ...]], test: list[tuple[str, ...]], threshold: float) -> dict[int, dict[int, float]]:
    """For each distinct test wording the distinct training wordings of at least the threshold, with their similarity."""
    if threshold <= 0:
        raise ValueError(f"text_threshold is {threshold}: expected a similarity above 0, at most 1")
    vocabulary: dict[tuple[str, ...], int] = {}
    train_matrix, train_sizes = _shingle_matrix(train, vocabulary)
    test_matrix, test_sizes = _shingle_matrix(test, vocabulary)
    # The later matrix may have seen shingles that the earlier has not; they are in common with none.
    train_matrix.resize(len(train), test_matrix.shape[1])
    common = (test_matrix @ train_matrix.T).tocoo()
    near: dict[int, dict[int, float]] = defaultdict(dict)
    similarity = common.data / (test_sizes[common.row] + train_sizes[common.col] - common.data)
    for place in (similarity >= threshold).nonzero()[0].tolist():
        near[int(common.row[place])][int(common.col[place])] = float(similarity[place])
    return near


def _shingle_matrix(wordings: list[tuple[str, ...]], vocabulary: dict[tuple[str, ...], int]) -> tuple[Any, NDArray[np.float64]]:
    """Sparse 0/1 matrix of wordings by word 3-shingles, and the number of shingles of each wording."""
    import numpy as np
    from scipy.sparse import csr_matrix

    starts, columns = [0], []
    for words in wordings:
        columns.extend(sorted(vocabulary.setdefault(shingle, len(vocabulary)) for shingle in _shingles(words)))
        starts.append(len(columns))
    values = np.ones(len(columns), dtype=np.float64)
    matrix = csr_matrix((values, columns, starts), shape=(len(wordings), len(vocabulary)))
    return matrix, np.diff(np.asarray(starts)).astype(np.float64)


def _near_texts(
    train: _Texts, test: _Texts, wording_pairs: dict[int, dict[int, float]], pictured: set[tuple[int, int]]
) -> list[tuple[Kind, int, list[int], float]]:
    """For each test item the training items of near wording, other picture, apart by whether their numbers agree."""
    members: dict[int, dict[tuple[str, ...], list[int]]] = defaultdict(lambda: defaultdict(list))
    for j, (wording, numbers) in enumerate(zip(train.wording_of, train.numbers_of, strict=True)):
        members[wording][tuple(sorted(numbers))].append(j)
    groups: list[tuple[Kind, int, list[int], float]] = []
    for i, wording in enumerate(test.wording_of):
        near = wording_pairs.get(wording, {})
        own = tuple(sorted(test.numbers_of[i]))
        same: list[int] = []
        other: list[int] = []
        for train_wording in near:
            for numbers, js in members[train_wording].items():
                (same if numbers == own else other).extend(j for j in js if (i, j) not in pictured)
        kinds: tuple[tuple[Kind, list[int]], ...] = (("text", same), ("template", other))
        for kind, js in kinds:
            if js:
                groups.append((kind, i, js, max(near[train.wording_of[j]] for j in js)))
    return groups
