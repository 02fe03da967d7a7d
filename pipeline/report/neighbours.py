"""Examine features: the nearest neighbours of images, and maps of all images in two dimensions (PCA, t-SNE).

Written to a folder, for the blob BLOB:
  neighbours_BLOB.csv   the six nearest of each image: path, rank, neighbour, cosine distance (0 to 2), and both classes
  neighbours_BLOB.json  images; nearest, the accuracy of the nearest neighbour's class; vote, that of the six neighbours' majority
                        (ties: the nearest class)
  neighbours_BLOB.png   ten images of different classes, drawn by seed, with their neighbours
  map_BLOB.png, .svg    the two principal components, and t-SNE of the first 50
Of more images than can be compared, a sample is drawn by seed.
"""

import json
from itertools import compress
from pathlib import Path
from statistics import mode
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from pipeline.command import run, step_parser
from pipeline.errors import InputError
from pipeline.figures import COLOURS, STYLE, save
from pipeline.files import stem_of, write_table, written_whole
from pipeline.formats.lists import read_image_list, read_labels
from pipeline.inference import feature_files
from pipeline.options.flags import read_flags
from pipeline.options.training import NeighbourOptions
from pipeline.report.gallery import Cell, gallery, images_at, shorten

NEAREST, QUERIES = 6, 10
"""Neighbours of each image, and images shown with their neighbours."""
MOST, VALUES = 5000, 1 << 26
"""Most images that are compared with one another, and most values in memory."""
MAPPED, COMPONENTS, ITERATIONS = 1000, 50, 500
"""Most images on the map; principal components as inputs of t-SNE; its iterations."""
LEGEND, NAMED = 10, 40
"""Most classes with a separate marker, and most classes named on the map."""
LETTERS = 20
"""Most letters of a class name on a map."""
Nearest = tuple[np.ndarray, np.ndarray]
SIGNS = "os^DvP*Xp<"


def sample(count: int, most: int, seed: int) -> np.ndarray:
    """At most `most` random numbers below `count`, sorted."""
    if count <= most:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).choice(count, most, replace=False))


def nearest(values: np.ndarray, count: int) -> Nearest:
    """Positions and cosine distances of the `count` nearest other rows of each row, nearest first; both rows × count."""
    lengths = np.linalg.norm(values, axis=1, keepdims=True)
    unit = values / np.where(lengths > 0, lengths, 1)
    count = min(count, len(values) - 1)
    positions, distances = np.empty((2, len(values), count))
    for start in range(0, len(values), 1000):
        block = 1 - unit[start : start + 1000] @ unit.T
        own = np.arange(len(block))
        block[own, start + own] = np.inf
        order = np.argsort(block, 1, kind="stable")[:, :count]
        positions[start : start + 1000], distances[start : start + 1000] = order, np.take_along_axis(block, order, 1)
    return positions.astype(int), distances.clip(0)


def votes(labels: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """The majority class of each row's neighbours; of equals, the nearest."""
    return np.array([mode(row) for row in labels[positions].tolist()])


def components(values: np.ndarray, count: int) -> np.ndarray:
    """The principal components of rows: rows × count; the largest value of each is positive."""
    centred = values - values.mean(0, dtype=np.float64)
    sizes, directions = np.linalg.eigh(centred @ centred.T)  # rows × rows, however many values they have
    scores = directions[:, ::-1][:, :count] * np.sqrt(sizes[::-1][:count].clip(0))
    largest = np.take_along_axis(scores, np.abs(scores).argmax(0)[None], 0)
    scores = scores * np.where(largest < 0, -1, 1)
    return np.pad(scores, ((0, 0), (0, max(0, count - scores.shape[1]))))


def tsne(values: np.ndarray, seed: int) -> np.ndarray:
    """t-SNE of rows, initialised by their first two components (van der Maaten and Hinton, 2008): rows × 2."""
    from sklearn.manifold import TSNE  # slow to import
    from threadpoolctl import threadpool_limits

    start = 1e-4 * values[:, :2] / max(values[:, 0].std(), 1e-12)
    method = TSNE(2, perplexity=min(30, (len(values) - 1) / 3), init=start, random_state=seed, max_iter=ITERATIONS, n_jobs=1)
    with threadpool_limits(1):  # a fixed order of sums
        places: np.ndarray = method.fit_transform(values)
    return places


def queries(labels: np.ndarray, count: int, seed: int) -> list[int]:
    """Positions drawn by seed, one of each class before a second of any; sorted by class."""
    order = np.random.default_rng(seed).permutation(len(labels))
    turn = {int(position): int((labels[order[:place]] == labels[position]).sum()) for place, position in enumerate(order)}
    chosen = sorted(turn, key=lambda position: turn[position])[:count]
    return sorted(chosen, key=lambda position: (labels[position], position))


def cells(
    queries: list[int], nearest: Nearest, labels: np.ndarray, names: list[str], images: dict[int, np.ndarray]
) -> list[list[Cell]]:
    """A row for each query: its image, then its neighbours, framed and marked by whether they are of its class."""
    rows = []
    for query in queries:
        row = [Cell(images[query], (names[labels[query]], "nearest:"))]
        for position, distance in zip(*(table[query] for table in nearest), strict=True):
            same = labels[position] == labels[query]
            lines = (f"{'✓' if same else '✗'} {names[labels[position]]}", f"{distance:.3f}")
            row.append(Cell(images[position], lines, COLOURS[2] if same else COLOURS[1]))
        rows.append(row)
    return rows


def draw_maps(places: dict[str, np.ndarray], labels: np.ndarray, names: list[str]) -> Figure:
    """Scatter plots of images, a panel for each embedding, {title: images × 2}.

    Up to LEGEND classes have a marker each; up to NAMED are named at the median of their images; of more, the largest LEGEND have
    a marker each, the others are gray.
    """
    classes, sizes = np.unique(labels, return_counts=True)
    largest = sorted(classes[np.argsort(-sizes, kind="stable")][: LEGEND if len(classes) > NAMED else NAMED])
    figure, panels = plt.subplots(len(places), 1, figsize=(6.4, 0.6 + 4.6 * len(places)), squeeze=False, layout="constrained")
    for axes, (title, where) in zip(panels[:, 0], places.items(), strict=True):
        others = ~np.isin(labels, largest)
        if others.any():
            axes.scatter(*where[others].T, 14, color="0.75", linewidths=0, label=f"{len(classes) - len(largest)} other classes")
        for number, label in enumerate(largest):
            here = where[labels == label]
            colour, sign = COLOURS[number % len(COLOURS)], SIGNS[number % len(SIGNS)]
            axes.scatter(*here.T, 22, color=colour, marker=sign, alpha=0.75, linewidths=0, label=names[label])
            if LEGEND < len(classes) <= NAMED:
                middle = np.median(here, 0)
                name = shorten(names[label], LETTERS)
                words = axes.annotate(name, middle, ha="center", va="center", fontsize=9, parse_math=False)
                words.set_bbox({"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.5})
        axes.set(title=title, xticks=[], yticks=[])
        axes.margins(0.04)
    if len(classes) <= LEGEND or len(classes) > NAMED:
        handles, words = panels[0, 0].get_legend_handles_labels()
        words = [shorten(word, LETTERS).replace("$", r"\$") for word in words]
        columns = int(6.2 / (0.55 + 0.09 * max(map(len, words))))  # inches, at this size of letters
        figure.legend(handles, words, loc="outside lower center", ncols=min(5, columns), fontsize=10)
    return figure


def read_features(folder: Path, blob: str, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(positions in the list, values: images × values, float32) of a sample of a folder's `count` images."""
    size = next(feature_files.read(folder, blob)).size
    positions = sample(count, min(MOST, VALUES // size), seed)
    rows = compress(feature_files.read(folder, blob), np.isin(np.arange(count), positions))
    values = np.fromiter(rows, np.dtype((np.float32, (size,))), len(positions))
    if len(values) < 2:
        raise InputError(folder, f"features of {len(values)} image", "two or more are needed")
    return positions, values


def write(folder: Path, blob: str, database: Path, names: list[str], target: Path, seed: int) -> dict[str, Any]:
    """Write the files of one blob of the folder of features `folder` to `target`; return the content of its JSON."""
    entries = read_image_list(folder / feature_files.IMAGES)
    sampled, values = read_features(folder, blob, len(entries), seed)
    paths, labels = [entries[position][0] for position in sampled], np.array([entries[position][1] for position in sampled])
    if not np.isfinite(values).all():
        path = paths[np.isfinite(values).all(1).argmin()]
        raise InputError(folder, f"NaN or infinite features of {path}", do="train again with a lower base_lr")
    positions, distances = nearest(values, NEAREST)
    content = {
        "images": len(labels),
        "nearest": float((labels[positions[:, 0]] == labels).mean()),
        "vote": float((votes(labels, positions) == labels).mean()),
    }
    stem = stem_of(blob)
    rows = (
        (paths[image], rank, paths[other], f"{distance:.6f}", names[labels[image]], names[labels[other]])
        for image in range(len(labels))
        for rank, (other, distance) in enumerate(zip(positions[image], distances[image], strict=True), 1)
    )
    with written_whole(target / f"neighbours_{stem}.csv") as part:
        write_table(part, ("path", "rank", "neighbour", "distance", "class", "neighbour_class"), rows)
    with written_whole(target / f"neighbours_{stem}.json") as part:
        part.write_text(json.dumps(content) + "\n")
    chosen = queries(labels, QUERIES, seed)
    pictured = {*chosen, *positions[chosen].ravel().tolist()}
    images = images_at(database, [int(sampled[row]) for row in pictured])
    if len(images) < len(pictured):
        raise InputError(database, "fewer records than features", do="give the database that the features are of")
    title = f"{content['nearest']:.1%} of {len(labels)} images are of their nearest neighbour's class"
    pixels = {row: images[sampled[row]] for row in pictured}
    sheet = gallery(cells(chosen, (positions, distances), labels, names, pixels), title)
    with written_whole(target / f"neighbours_{stem}.png") as part:
        sheet.savefig(part, format="png", dpi=130, metadata={"Software": None})
    plt.close(sheet)
    on_map = sample(len(labels), MAPPED, seed)
    save(draw_maps(embed(values[on_map], blob, seed), labels[on_map], names), target / f"map_{stem}")
    return content


def embed(values: np.ndarray, blob: str, seed: int) -> dict[str, np.ndarray]:
    """{title: images × 2}: the first two principal components, and t-SNE of COMPONENTS of them for ten images or more."""
    principal = components(values, COMPONENTS)
    places = {f"{blob}: two principal components of {len(values)} images": principal[:, :2]}
    return places | {"t-SNE": tsne(principal, seed)} if len(values) >= 10 else places


def main(argv: list[str] | None = None) -> None:
    parser = step_parser(__doc__, NeighbourOptions)
    parser.add_argument("features", type=Path, help="the folder that the features step wrote")
    parser.add_argument("database", type=Path, help="the LMDB that the features are of, for the pictures")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--labels", type=Path, required=True, help="labels.txt")
    parser.add_argument("--seed", type=int, default=1, help="seed of the samples (default: %(default)s)")
    a = parser.parse_args(argv)
    plt.rcParams.update(STYLE)
    figures = write(a.features, read_flags(a, NeighbourOptions).blob, a.database, read_labels(a.labels), a.folder, a.seed)
    print(f"{a.folder}: {figures['nearest']:.1%} of {figures['images']} images are of their nearest neighbour's class")


if __name__ == "__main__":
    run(main)
