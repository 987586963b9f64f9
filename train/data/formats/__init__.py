"""Cameras as other tools write them, brought to the project's convention: camera-to-world, OpenCV axes,
pixels.

read           which tool wrote a file; reads it, or says what is wrong with it
fields         what the readers share: the result, and fields that are checked one by one
nerfstudio     transforms.json (instant-ngp's and Blender's too): camera-to-world, +y up, +z backward
colmap         cameras and images, .txt or .bin: world-to-camera, quaternions w first, no unit
realestate10k  a row per frame: time, fx fy cx cy in widths and heights, world-to-camera (3, 4), no unit
phones         record3d: metadata, .json or .r3d: camera-to-world as quaternion w last, +y up, metres;
               arkit: frames with `transform` (4, 4) and `intrinsics` (3, 3): +y up, metres

Pixel (0, 0) begins at 0 in all of them. Lenses that bend straight lines by more than a hundredth of the
picture are refused: a sidecar holds pinhole cameras.
"""

from .fields import Track
from .read import FORMATS, hint_beside, read_track, recognise, recognise_fields

__all__ = ["FORMATS", "Track", "hint_beside", "read_track", "recognise", "recognise_fields"]
