"""Run by an environment that has Pi3X: `python pi3x_runner.py VIDEO DIR 0:200 150:350`. Imports nothing of
ours.

Writes a file per window, as `external.read_pi3x` wants it. Not run yet: neither the weights nor a GPU were at
hand when this was written.
"""

import sys
from pathlib import Path

MOST_PIXELS, PATCH, STRIDE = 255_000, 14, 8


def main(video: str, folder: str, *spans: str) -> None:
    """Estimates the cameras of each window of a video."""
    import cv2
    import numpy as np
    import torch
    from pi3.models.pi3x import Pi3X  # type: ignore[import-not-found]

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = Pi3X.from_pretrained("yyfz233/Pi3X").to(device).eval()
    capture, frames = cv2.VideoCapture(video), []
    while True:
        there, frame = capture.read()
        if not there:
            break
        shrink = min(1.0, (MOST_PIXELS / (frame.shape[0] * frame.shape[1])) ** 0.5)
        height, width = (max(PATCH, round(side * shrink / PATCH) * PATCH) for side in frame.shape[:2])
        frames.append(cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA)[..., ::-1].copy())
    for span in spans:
        first, last = map(int, span.split(":"))
        pictures = torch.from_numpy(np.stack(frames[first:last])).movedim(-1, 1).float().to(device) / 255
        with torch.inference_mode():
            seen = model(pictures[None])
        local = seen["local_points"][0].float().cpu().numpy()  # (F, H, W, 3)
        height, width = local.shape[1:3]
        v, u = np.meshgrid(np.arange(height) + 0.5, np.arange(width) + 0.5, indexing="ij")
        ahead = local[..., 2] > 1e-6
        slope = local[..., :2] / np.where(ahead, local[..., 2], 1)[..., None]
        # least squares of pixel = focal * slope + middle, the principal point in the middle
        fx = ((u - width / 2) * slope[..., 0] * ahead).sum() / (slope[..., 0] ** 2 * ahead).sum()
        fy = ((v - height / 2) * slope[..., 1] * ahead).sum() / (slope[..., 1] ** 2 * ahead).sum()
        grid = np.zeros_like(ahead)
        grid[:, STRIDE // 2 :: STRIDE, STRIDE // 2 :: STRIDE] = True
        frame, row, column = np.nonzero(grid & ahead)
        np.savez(
            Path(folder) / f"{first:06d}.npz",
            c2w=seen["camera_poses"][0].float().cpu().numpy().astype(np.float64),
            intrinsics=np.array([fx / width, fy / height, 0.5, 0.5]),
            frame=frame,
            xy=np.stack([(column + 0.5) / width, (row + 0.5) / height], 1),
            depth=local[frame, row, column, 2],
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
