"""Look at features: which images are nearest to which, and a map of all in two dimensions.

Written to a folder, for the blob BLOB:
  neighbours_BLOB.csv   the six nearest of each image: path, rank, neighbour, cosine distance (0 to 2), and both classes
  neighbours_BLOB.json  images; nearest, the share of them whose nearest neighbour is of their class; vote, the share whose class
                        most of the six have (of classes with equally many, the nearest one)
  neighbours_BLOB.png   ten images of different classes, drawn by seed, with their neighbours
  map_BLOB.png, .svg    the two main components, and t-SNE of the first 50
Where there are more images or values than fit, as many as do are drawn by seed.
"""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from pipeline.command import run, step_parser
from pipeline.errors import InputError
from pipeline.figures import COLOURS, STYLE, save
from pipeline.files import stem_of, write_table, written_whole
from pipeline.formats.lists import read_image_list, read_labels
from pipeline.inference import feature_files
from pipeline.options.flags import read_flags
from pipeline.options.training import NeighbourOptions
from pipeline.report.gallery import Cell, cut, gallery, images_at

NEAREST, QUERIES = 6, 10
"""Neighbours of each image, and images that are shown with theirs."""
MOST, VALUES = 5000, 1 << 26
"""Images that are compared with one another, and values that are held in memory, at most."""
MAPPED, COMPONENTS, ITERATIONS = 1000, 50, 500
"""Images on the map at most; main components that t-SNE starts from; its steps."""
LEGEND, NAMED = 10, 40
"""Most classes that have a colour and a sign each, and that are named on the map."""
LETTERS = 20
"""Most of a class's name on a map."""
SIGNS = "os^DvP*Xp<"


def drawn(count: int, most: int, seed: int) -> np.ndarray:
    """At most so many of the numbers below `count`, in their order."""
    if count <= most:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).choice(count, most, replace=False))


def nearest(values: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions and cosine distances of the `count` nearest other rows of each row, the nearest first; both rows × count."""
    lengths = np.linalg.norm(values, axis=1, keepdims=True)
    unit = values / np.where(lengths > 0, lengths, 1)
    count = min(count, len(values) - 1)
    positions, distances = np.empty((2, len(values), count))
    for start in range(0, len(values), 1000):
        block = 1 - unit[start : start + 1000] @ unit.T
        own = np.arange(len(block))
        block[own, start + own] = np.inf
        found = np.argsort(block, 1, kind="stable")[:, :count]
        positions[start : start + 1000], distances[start : start + 1000] = found, np.take_along_axis(block, found, 1)
    return positions.astype(int), distances.clip(0)


def votes(labels: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """The class that most neighbours of each row have; of equals, the one that comes nearest."""
    theirs = labels[positions]
    return np.array([max(dict.fromkeys(row.tolist()), key=row.tolist().count) for row in theirs])


def components(values: np.ndarray, count: int) -> np.ndarray:
    """Where rows lie along the main components of them all: rows × count; of each, the longest way is positive."""
    centred = values - values.mean(0, dtype=np.float64)
    sizes, directions = np.linalg.eigh(centred @ centred.T)  # as many as there are rows, however many values they have
    found = directions[:, ::-1][:, :count] * np.sqrt(sizes[::-1][:count].clip(0))
    longest = np.take_along_axis(found, np.abs(found).argmax(0)[None], 0)
    found = found * np.where(longest < 0, -1, 1)
    return np.pad(found, ((0, 0), (0, max(0, count - found.shape[1]))))


def tsne(values: np.ndarray, seed: int) -> np.ndarray:
    """t-SNE of rows, from where their first two components lie (van der Maaten and Hinton, 2008): rows × 2."""
    from sklearn.manifold import TSNE  # takes a second
    from threadpoolctl import threadpool_limits

    start = 1e-4 * values[:, :2] / max(values[:, 0].std(), 1e-12)
    method = TSNE(2, perplexity=min(30, (len(values) - 1) / 3), init=start, random_state=seed, max_iter=ITERATIONS, n_jobs=1)
    with threadpool_limits(1):  # sums in one order
        return method.fit_transform(values)


def queries(labels: np.ndarray, count: int, seed: int) -> list[int]:
    """Positions drawn by seed, one of each class before a second of any; in the order of classes."""
    order = np.random.default_rng(seed).permutation(len(labels))
    turn = {int(position): int((labels[order[:place]] == labels[position]).sum()) for place, position in enumerate(order)}
    chosen = sorted(turn, key=turn.get)[:count]
    return sorted(chosen, key=lambda position: (labels[position], position))


def rows_of(shown: list[int], found: tuple[np.ndarray, np.ndarray], labels: np.ndarray, names: list[str], images: dict) -> list:
    """For each query its row of cells: itself, then its neighbours; a frame and a sign say whether they are of its class.

    shown   positions of the queries
    found   what `nearest` gives
    images  {position: pixels}
    """
    rows = []
    for query in shown:
        row = [Cell(images[query], (names[labels[query]], "nearest:"))]
        for position, distance in zip(*(one[query] for one in found), strict=True):
            same = labels[position] == labels[query]
            words = (f"{'✓' if same else '✗'} {names[labels[position]]}", f"{distance:.3f}")
            row.append(Cell(images[position], words, COLOURS[2] if same else COLOURS[1]))
        rows.append(row)
    return rows


def map_of(places: dict[str, np.ndarray], labels: np.ndarray, names: list[str]) -> plt.Figure:
    """Where images lie, a panel for each way of placing them; images × 2 each.

    Up to LEGEND classes have a colour and a sign each; up to NAMED are named in the middle of their images; of more, the largest
    LEGEND have a colour and a sign, the others are gray.
    """
    classes, sizes = np.unique(labels, return_counts=True)
    largest = sorted(classes[np.argsort(-sizes, kind="stable")][: LEGEND if len(classes) > NAMED else NAMED])
    figure, panels = plt.subplots(len(places), 1, figsize=(6.4, 0.6 + 4.6 * len(places)), squeeze=False, layout="constrained")
    for axes, (title, where) in zip(panels[:, 0], places.items(), strict=True):
        others = ~np.isin(labels, largest)
        if others.any():
            axes.scatter(*where[others].T, 14, color="0.75", linewidths=0, label=f"{len(classes) - len(largest)} other classes")
        for number, one in enumerate(largest):
            here = where[labels == one]
            colour, sign = COLOURS[number % len(COLOURS)], SIGNS[number % len(SIGNS)]
            axes.scatter(*here.T, 22, color=colour, marker=sign, alpha=0.75, linewidths=0, label=names[one])
            if LEGEND < len(classes) <= NAMED:
                middle = np.median(here, 0)
                words = axes.annotate(cut(names[one], LETTERS), middle, ha="center", va="center", fontsize=9, parse_math=False)
                words.set_bbox({"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.5})
        axes.set_title(title)
        axes.set(xticks=[], yticks=[])
        axes.margins(0.04)
    if len(classes) <= LEGEND or len(classes) > NAMED:
        handles, words = panels[0, 0].get_legend_handles_labels()
        words = [cut(word, LETTERS).replace("$", r"\$") for word in words]
        columns = int(6.2 / (0.55 + 0.09 * max(map(len, words))))  # inches, at this size of letters
        figure.legend(handles, words, loc="outside lower center", ncols=min(5, columns), fontsize=10)
    return figure


def write(folder: Path, blob: str, database: Path, names: list[str], target: Path, seed: int) -> dict:
    """Write what there is to see of one blob in the folder of features `folder` to `target`; return the figures of its JSON."""
    entries, first = read_image_list(folder / feature_files.IMAGES), next(feature_files.read(folder, blob))
    chosen = drawn(len(entries), min(MOST, VALUES // first.size), seed)
    values = np.empty((len(chosen), first.size), np.float32)
    numbers = {position: number for number, position in enumerate(chosen.tolist())}
    for position, row in enumerate(feature_files.read(folder, blob)):
        if position in numbers:
            values[numbers[position]] = row
    paths, labels = [entries[position][0] for position in chosen], np.array([entries[position][1] for position in chosen])
    if len(values) < 2:
        raise InputError(folder, f"features of {len(values)} image", "neighbours are among two and more")
    if not np.isfinite(values).all():
        path = paths[np.isfinite(values).all(1).argmin()]
        raise InputError(folder, f"features of {path} that are no numbers", do="train again with a lower base_lr")
    positions, distances = nearest(values, NEAREST)
    figures = {
        "images": len(values),
        "nearest": float((labels[positions[:, 0]] == labels).mean()),
        "vote": float((votes(labels, positions) == labels).mean()),
    }
    stem = stem_of(blob)
    rows = (
        (paths[one], rank, paths[other], f"{distance:.6f}", names[labels[one]], names[labels[other]])
        for one in range(len(values))
        for rank, (other, distance) in enumerate(zip(positions[one], distances[one], strict=True), 1)
    )
    with written_whole(target / f"neighbours_{stem}.csv") as part:
        write_table(part, ("path", "rank", "neighbour", "distance", "class", "neighbour_class"), rows)
    with written_whole(target / f"neighbours_{stem}.json") as part:
        part.write_text(json.dumps(figures) + "\n")
    shown = queries(labels, QUERIES, seed)
    wanted = {*shown, *positions[shown].ravel().tolist()}
    found = images_at(database, [int(chosen[one]) for one in wanted])
    if len(found) < len(wanted):
        raise InputError(database, "fewer records than features", do="give the database that the features are of")
    images = {one: found[chosen[one]] for one in wanted}
    title = f"{figures['nearest']:.1%} of {len(values)} images are of their nearest neighbour's class"
    sheet = gallery(rows_of(shown, (positions, distances), labels, names, images), title)
    with written_whole(target / f"neighbours_{stem}.png") as part:
        sheet.savefig(part, format="png", dpi=130, metadata={"Software": None})
    plt.close(sheet)
    mapped = drawn(len(values), MAPPED, seed)
    main_components = components(values[mapped], COMPONENTS)
    places = {f"{blob}: two main components of {len(mapped)} images": main_components[:, :2]}
    if len(mapped) >= 10:  # t-SNE wants neighbours
        places["t-SNE"] = tsne(main_components, seed)
    save(map_of(places, labels[mapped], names), target / f"map_{stem}")
    return figures


def main(argv: list[str] | None = None) -> None:
    parser = step_parser(__doc__, NeighbourOptions)
    parser.add_argument("features", type=Path, help="the folder that the features step wrote")
    parser.add_argument("database", type=Path, help="the LMDB that the features are of, for the pictures")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--labels", type=Path, required=True, help="labels.txt")
    parser.add_argument("--seed", type=int, default=1, help="what images are drawn by (default: %(default)s)")
    a = parser.parse_args(argv)
    plt.rcParams.update(STYLE)
    figures = write(a.features, read_flags(a, NeighbourOptions).blob, a.database, read_labels(a.labels), a.folder, a.seed)
    print(f"{a.folder}: {figures['nearest']:.1%} of {figures['images']} images are of their nearest neighbour's class")


if __name__ == "__main__":
    run(main)
