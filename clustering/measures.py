"""How good a space and its clusters are: each measure a function on arrays."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from clustering.assign import Labels
from clustering.space import Matrix

Codes = npt.NDArray[np.intp]
"""(n,) a number for each value, −1 where there is none."""

MIN_CLASS = 5
"""Classes of fewer tracks are left out."""
SAMPLE_ROWS = 2_000
"""Of the silhouette."""
ASKED_ROWS = 10_000
"""Rows whose nearest neighbours are sought at most; candidates are all."""
BLOCK_VALUES = 4_000_000
"""Distances held at a time while neighbours are sought: 32 MB."""
PERMUTATIONS = 20
"""Behind a level of chance."""


@dataclass(frozen=True, slots=True)
class Classes:
    """The values of a catalogue's column as classes."""

    codes: Codes
    """Those left out are −1."""
    n_classes: int
    small_classes: int
    """How many had fewer than `MIN_CLASS` tracks."""
    small_tracks: int
    unlabelled: int
    """Tracks without a value."""


@dataclass(frozen=True, slots=True)
class Accuracy:
    """How often the nearest neighbours name a track's class."""

    n: int
    """Tracks that have another one of their class to be found."""
    majority: float
    """Share of the largest class among them: the accuracy of who always says that class."""
    nn1: float
    nn1_error: float
    """Standard error: √(p(1 − p)/n)."""
    nn5: float
    nn5_error: float


def encode(values: Sequence[object]) -> Codes:
    """Return a code for each value; None and empty text have −1."""
    numbers: dict[object, int] = {}
    return np.array([numbers.setdefault(v, len(numbers)) if v not in (None, "") else -1 for v in values], dtype=np.intp)


def classes(values: Sequence[object]) -> Classes:
    """Return the classes that have at least `MIN_CLASS` tracks."""
    codes = encode(values)
    sizes = Counter(codes[codes >= 0].tolist())
    small = [code for code, size in sizes.items() if size < MIN_CLASS]
    left_out = np.isin(codes, small)
    return Classes(
        codes=np.where(left_out, -1, codes),
        n_classes=len(sizes) - len(small),
        small_classes=len(small),
        small_tracks=int(left_out.sum()),
        unlabelled=int((codes < 0).sum()),
    )


def knn_accuracy(X: Matrix, codes: Codes, *, apart: Sequence[Codes] = (), random_state: int = 0) -> Accuracy | None:
    """Return the leave-one-out accuracy of 1 and of 5 nearest neighbours; of a tied vote the nearest decides.

    Parameters
    ----------
    X : ndarray, shape (n, d)
    codes : ndarray of int, shape (n,)
        The class of each row, −1 where it has none.
    apart : sequence of ndarray of int, shape (n,)
        Rows with the same code (−1 is none) are no neighbours of each other: with the artists' and albums' codes this
        is the artist filter (Flexer 2007), since a space may know an artist or a recording studio instead of a genre.
    random_state : int
        Chooses which rows are asked where there are more than `ASKED_ROWS`.

    Returns
    -------
    Accuracy or None
        Over the rows that have another one of their class left, since no other could ever be right; None without any.
    """
    labelled = np.flatnonzero(codes >= 0)
    X, codes, apart = X[labelled], codes[labelled], [one[labelled] for one in apart]
    asked = np.sort(np.random.default_rng(random_state).permutation(len(X))[:ASKED_ROWS])
    norms = np.square(X).sum(axis=1)
    right = {1: 0, 5: 0}
    answerable: list[Codes] = [codes[:0]]
    for rows in np.array_split(asked, len(asked) * len(X) // BLOCK_VALUES + 1):
        banned = forbidden(rows, apart, len(X))
        known = ((codes[rows, None] == codes) & ~banned).any(axis=1)
        rows, banned = rows[known], banned[known]
        near = nearest_allowed(np.where(banned, np.inf, norms - 2 * X[rows] @ X.T), max(right))
        for k in right:
            right[k] += int((vote(np.where(near >= 0, codes[near], -1)[:, :k]) == codes[rows]).sum())
        answerable.append(codes[rows])
    own = np.concatenate(answerable)
    if not len(own):
        return None
    shares = {k: count / len(own) for k, count in right.items()}
    errors = {k: float(np.sqrt(share * (1 - share) / len(own))) for k, share in shares.items()}
    majority = float(np.bincount(own).max() / len(own))
    return Accuracy(len(own), majority, shares[1], errors[1], shares[5], errors[5])


def forbidden(rows: Codes, apart: Sequence[Codes], n: int) -> npt.NDArray[np.bool_]:
    """Return (n_rows, n): which of n candidates are no neighbours of a row, itself among them."""
    banned: npt.NDArray[np.bool_] = rows[:, None] == np.arange(n)
    for codes in apart:
        banned |= (codes[rows, None] == codes) & (codes[rows, None] >= 0)
    return banned


def nearest_allowed(squares: Matrix, k: int) -> Codes:
    """Return (n_rows, k): the columns of the smallest values of each row in their order, −1 beyond the finite ones."""
    k = min(k, squares.shape[1])
    near = np.argpartition(squares, k - 1, axis=1)[:, :k]
    values = np.take_along_axis(squares, near, axis=1)
    order = np.argsort(values, axis=1, kind="stable")
    return np.where(np.isinf(values), -1, near)[np.arange(len(near))[:, None], order]


def vote(voters: Codes) -> Codes:
    """Return the most frequent code of each row, of equals the one that comes first; −1 does not vote."""
    votes = (voters[:, :, None] == voters[:, None, :]).sum(axis=2) * (voters >= 0)
    elected: Codes = voters[np.arange(len(voters)), votes.argmax(axis=1)]
    return elected


def purity(labels: Labels, codes: Codes) -> float:
    """Return the share of rows that are of their cluster's largest class (Manning et al. 2008, 16.3)."""
    from sklearn.metrics.cluster import contingency_matrix

    return float(contingency_matrix(codes, labels).max(axis=0).sum() / len(labels))


def nmi(labels: Labels, codes: Codes) -> float:
    """Return the mutual information over the mean of both entropies: 1 for the same partition."""
    from sklearn.metrics import normalized_mutual_info_score

    return float(normalized_mutual_info_score(codes, labels))


def ari(labels: Labels, codes: Codes) -> float:
    """Return the adjusted Rand index (Hubert & Arabie 1985): 1 for the same partition, 0 by chance."""
    from sklearn.metrics import adjusted_rand_score

    return float(adjusted_rand_score(codes, labels))


def chance(measure: Callable[[Labels, Codes], float], labels: Labels, codes: Codes, random_state: int = 0) -> float:
    """Return what a measure says on average of clusters of the same sizes that know nothing of the classes."""
    rng = np.random.default_rng(random_state)
    return float(np.mean([measure(labels, rng.permutation(codes)) for _ in range(PERMUTATIONS)]))


def agreement(labels: Labels, codes: Codes, random_state: int = 0) -> dict[str, float]:
    """Return purity, NMI and their levels of chance, and ARI; nothing where there are fewer than two classes."""
    known = codes >= 0
    labels, codes = labels[known], codes[known]
    if len(np.unique(codes)) < 2:
        return {}
    return {
        "purity": purity(labels, codes),
        "purity_chance": chance(purity, labels, codes, random_state),
        "nmi": nmi(labels, codes),
        "nmi_chance": chance(nmi, labels, codes, random_state),
        "ari": ari(labels, codes),
    }


def gini(sizes: npt.NDArray[np.integer]) -> float:
    """Return how unequal sizes are: 0 if all are equal, towards 1 if one has everything (Gini 1912)."""
    ordered = np.sort(sizes)
    n = len(ordered)
    return float(2 * (np.arange(1, n + 1) * ordered).sum() / (n * ordered.sum()) - (n + 1) / n)


def shape(X: Matrix, labels: Labels, random_state: int = 0) -> dict[str, float]:
    """Return how compact, separate and equal in size clusters are.

    The silhouette (Rousseeuw 1987) is the mean of a seeded sample of at most 2,000 rows; it and the index of Davies &
    Bouldin (1979) exist where there are two clusters or more, and one has two members.
    """
    from sklearn.metrics import davies_bouldin_score, silhouette_score

    found = {"gini": gini(np.bincount(labels))}
    sample = np.random.default_rng(random_state).permutation(len(labels))[:SAMPLE_ROWS]
    if 1 < len(np.unique(labels[sample])) < len(sample):
        found["silhouette"] = float(silhouette_score(X[sample], labels[sample]))
    if 1 < len(np.unique(labels)) < len(labels):
        found["davies_bouldin"] = float(davies_bouldin_score(X, labels))
    return found


def hubs(near: Labels) -> tuple[int, float]:
    """Return how many rows list the row that most of them list, and the share of rows that none lists.

    Parameters
    ----------
    near : ndarray of int, shape (n, k)
        The rows that each row lists, −1 for none. Hubs are listed far more often than k times (Radovanović et al.
        2010).
    """
    counts = np.bincount(near[near >= 0], minlength=len(near))
    return int(counts.max(initial=0)), float((counts == 0).mean())
