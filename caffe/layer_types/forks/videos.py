"""Source of video clips: VideoData of C3D (Tran et al. 2015) and of temporal segment networks (Wang et al. 2016)."""

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import cv2
import numpy as np

from caffe.engine.layer import Shape, register
from caffe.errors import Error, FileError
from caffe.formats.stored import read_array
from caffe.layer_types.data import Batch
from caffe.layer_types.files import ImageData, numbered_lines, read_image
from caffe.proto import caffe_pb2
from caffe.transforms.transform import Transformer

RGB = caffe_pb2.VideoDataParameter.RGB
_SEGMENTS = ("num_segments", "modality", "name_pattern", "grayscale")
"""Settings that only temporal segment networks have."""


class Video(NamedTuple):
    """A line of the list: path, first frame (of jittered folders, the number of frames; None if there is none), and labels."""

    path: str
    frame: int | None
    labels: list[int]


@register("VideoData")
class VideoData(ImageData):
    """Clips and labels from a list, repeated endlessly: → (N, C, L, H, W), (N,), of C3D; or (N, channels, H, W), (N,).

    C3D: a line is `path frame label`; the clip has new_length frames from that one on, each sampling_rate-th, of a video file, or
    with use_image of a folder of 000001.jpg, …. With use_temporal_jitter it starts anywhere: lines are `path label` of files, and
    `path frames label` of folders, of which testing takes the first frames. With use_multiple_label, labels are numbers with
    commas between, and the second top is (N, num_of_labels), 1 or 0.
    Temporal segment networks (num_segments, modality, name_pattern or grayscale is given): a line is `folder frames label`; the
    frames are divided into num_segments, of each of which new_length frames from a random one on, in testing from the middle,
    are taken. The channels are those of all frames; of FLOW, the horizontal and the vertical one of each frame.
    All frames of a clip are cropped and mirrored alike. mean_value has one value for all, or those of one frame; that of segments
    may have one for each channel. Sources: video_data_layer.cpp of facebookarchive/C3D and yjxiong/caffe. A clip that cannot be
    read is an error in both phases.
    """

    tops = (2, 2)
    reads = "records"

    @property
    def of_segments(self) -> bool:
        """Whether the settings are those of temporal segment networks."""
        return any(self.param.video_data_param.HasField(name) for name in _SEGMENTS)

    @property
    def channels(self) -> int:
        """Channels of a frame."""
        p = self.param.video_data_param
        if not self.of_segments:
            return 3 if p.is_color else 1
        return 2 if p.modality != RGB else 1 if p.grayscale else 3

    def setup(self, *shapes: Shape) -> None:
        p = self.param.video_data_param
        self.require_positive("new_length", "sampling_rate", "max_sampling_rate", "num_segments", "num_of_labels")
        if self.param.transform_param.bgr2rgb or self.param.transform_param.cvt_bgr2rgb:
            raise self.error("bgr2rgb", "the channels of clips are not reversed", "leave it out")
        default = "image_%04d.jpg" if p.modality == RGB else "flow_%c_%04d.jpg"
        self.pattern = p.name_pattern or default
        super().setup(*shapes)

    @property
    def rate(self) -> int:
        """Frames from one frame of a clip to the next, where that is not drawn."""
        return 1 if self.of_segments else self.param.video_data_param.sampling_rate

    def make_transformer(self) -> Transformer:
        p, param = self.param.video_data_param, self.param.transform_param
        flat = caffe_pb2.TransformationParameter()
        flat.CopyFrom(param)
        if len(param.mean_value) > 1 and not self.of_segments:
            flat.mean_value[:] = [value for value in param.mean_value for _ in range(p.new_length)]
        elif len(param.mean_value) > 1 and not (count := self.channels * p.new_length * p.num_segments) % len(param.mean_value):
            flat.mean_value[:] = list(param.mean_value) * (count // len(param.mean_value))
        if not self.of_segments:
            flat.ClearField("mean_file")
        transformer = Transformer(flat, self.phase, self.where, self.rng, self.transform_device)
        if param.mean_file and not self.of_segments:
            mean = read_array(param.mean_file, "mean file", "correct transform_param.mean_file")
            transformer.mean = mean.reshape(-1, *mean.shape[-2:])
        return transformer

    def top_shapes(self) -> list[Shape]:
        p = self.param.video_data_param
        shape = self.transformer.shape(self.image)
        clips = (p.batch_size, *shape) if self.of_segments else (p.batch_size, self.channels, p.new_length, *shape[1:])
        return [clips, (p.batch_size, p.num_of_labels) if p.use_multiple_label else (p.batch_size,)]

    def batch_dependence(self) -> str:
        p = self.param.video_data_param
        jitters = p.use_temporal_jitter or p.use_sampling_rate_jitter
        random = jitters or (self.of_segments and self.phase == caffe_pb2.TRAIN)
        return "starts clips at random" if random else super().batch_dependence()

    def read_list(self) -> list[Any]:
        p = self.param.video_data_param
        return [self._parsed(number, line) for number, line in numbered_lines(p.source, "list of videos", self.where)]

    def _parsed(self, number: int, line: str) -> Video:
        p = self.param.video_data_param
        unplaced = not self.of_segments and p.use_temporal_jitter and not p.use_image
        try:
            path, *frame, labels = line.rsplit(None, 1 if unplaced else 2)
            if len(frame) != (not unplaced):
                raise ValueError
            numbers = [int(label) for label in labels.split(",")]
            video = Video(p.root_folder + path, int(frame[0]) if frame else None, numbers)
            if (not p.use_multiple_label and len(numbers) > 1) or (video.frame or 0) < 0:
                raise ValueError
        except ValueError:
            counted = "frames" if self.of_segments or p.use_temporal_jitter else "frame"
            expected = "path label" if unplaced else f"path {counted} label"
            raise Error(f"{p.source}:{number}", f'"{line}"', f'a line must be "{expected}", of whole numbers') from None
        if p.use_multiple_label and not 0 <= min(numbers) <= max(numbers) < p.num_of_labels:
            raise Error(f"{p.source}:{number}", f"labels {labels}", f"num_of_labels is {p.num_of_labels}, they start from 0")
        return video

    def pixels(self, line: Any) -> np.ndarray:
        """The first clip of a video, for its shape: as `clip`."""
        return self.clip(line, self.starts(line, self.rate, draws=False), self.rate)

    def starts(self, video: Video, rate: int, draws: bool = True) -> list[int]:
        """First frames of the clips of a video, random ones if it says so and `draws`; numbers of files start from 1."""
        p = self.param.video_data_param
        if self.of_segments:
            frames = (video.frame or 0) // p.num_segments
            room = frames - p.new_length + 1
            places = [self._place(room, draws and self.phase == caffe_pb2.TRAIN) for _ in range(p.num_segments)]
            return [place + index * frames + 1 if room > 0 else 1 for index, place in enumerate(places)]
        if not p.use_temporal_jitter:
            return [video.frame or 0]
        if not p.use_image:
            return [-1 if draws else 0]  # drawn when the number of frames is known
        room = (video.frame or 0) - p.new_length * rate + 1
        if room < 1:
            raise Error(video.path, f"{video.frame} frames", f"a clip spans {p.new_length * rate}", "leave it out")
        return [1 + (self.rng.integers(room) if draws and self.phase == caffe_pb2.TRAIN else 0)]

    def _place(self, room: int, draws: bool) -> int:
        return self.rng.integers(room) if draws and room > 0 else room // 2

    def clip(self, video: Video, starts: list[int], rate: int, share: float = 0) -> np.ndarray:
        """The frames of a clip as one image: C3D's channels × frames, or the frames' channels in order; × height × width.

        share  of the room in a video file, where the clip starts if starts is [-1]
        """
        p = self.param.video_data_param
        numbers = [start + index * rate for start in starts for index in range(p.new_length)]
        if self.of_segments:
            return np.concatenate([self.segment_frame(video.path, number) for number in numbers])
        if p.use_image:
            frames = np.stack([read_image(f"{video.path}/{number:06}.jpg", p.is_color, self.size) for number in numbers])
        else:
            frames = np.stack(self.video_frames(video.path, starts[0], rate, share))
        return frames.swapaxes(0, 1).reshape(-1, *frames.shape[2:])

    def segment_frame(self, folder: str, number: int) -> np.ndarray:
        """A frame of temporal segment networks: its channels × height × width."""
        try:
            if self.param.video_data_param.modality == RGB:
                names = [self.pattern % number]
            else:
                names = [self.pattern % (axis, number) for axis in ("x", "y")]
        except (TypeError, ValueError):
            expected = 'it must be like "image_%04d.jpg", of FLOW like "flow_%c_%04d.jpg"'
            raise self.error(f'name_pattern "{self.pattern}"', expected) from None
        return np.concatenate([read_image(f"{folder}/{name}", self.channels == 3, self.size) for name in names])

    def video_frames(self, path: str, start: int, rate: int, share: float) -> list[np.ndarray]:
        """Frames of a video file, channels × height × width each."""
        p = self.param.video_data_param
        video = cv2.VideoCapture(path)
        try:
            if not video.isOpened():
                raise FileError(path, "not a video that OpenCV can read")
            room = int(video.get(cv2.CAP_PROP_FRAME_COUNT)) - p.new_length * rate
            start = int(share * (room + 1)) if start < 0 else start
            if start > room:
                found = f"{room + p.new_length * rate} frames"
                raise FileError(path, found, f"a clip spans {p.new_length * rate} from frame {max(start, 0)} on", "leave it out")
            frames = []
            for number in range(start, start + p.new_length * rate, rate):
                video.set(cv2.CAP_PROP_POS_FRAMES, number)
                is_read, frame = video.read()
                if not is_read:
                    raise FileError(path, f"no frame {number} that OpenCV can read")
                if self.size:
                    frame = cv2.resize(frame, self.size[::-1])
                frame = frame if p.is_color else cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY)[:, :, None]
                frames.append(frame.transpose(2, 0, 1))
            return frames
        finally:
            video.release()

    def labels(self, lines: list[Any]) -> np.ndarray:
        p = self.param.video_data_param
        if not p.use_multiple_label:
            return np.asarray([video.labels[0] for video in lines], np.float32)
        marks = np.zeros((len(lines), p.num_of_labels), np.float32)
        for row, video in zip(marks, lines, strict=True):
            row[video.labels] = 1
        return marks

    def read(self, position: int) -> Iterator[Batch]:
        p = self.param.video_data_param
        lines = self.ordered(position)
        with ThreadPoolExecutor(2) as pool:
            while True:
                batch: list[Any] = list(itertools.islice(lines, self.batch_size))
                drawn = p.use_sampling_rate_jitter and not self.of_segments
                rates = [1 + self.rng.integers(p.max_sampling_rate) if drawn else self.rate for _ in batch]
                starts = [self.starts(video, rate) for video, rate in zip(batch, rates, strict=True)]
                shares = [self.rng.random() if start == [-1] else 0 for start in starts]
                clips = self.transformer(list(pool.map(self.clip, batch, starts, rates, shares)))
                yield clips.reshape(self.top_shapes()[0]), self.labels(batch)
