"""Poses for videos that have none: `sana-wm annotate`. Its result is what `train/data` already takes, a
sidecar beside each clip; packing and training know nothing of it.

In the order in which a clip goes through them:

command, stages, records     the command; one function per stage; what has been done, and the manifest
shots, frames                videos to clips of one shot each; frames of videos
masks                        what moves, told by another tool
parallax                     what pixels alone say of the camera: still, turning only, moving things
poses                        what a backend is, and what it returns
colmap                       pycolmap, on a CPU
windows                      long clips in windows, joined by similarities
external, pi3x_runner        ViPE and Pi3X with MoGe-2, as commands
given                        poses that are there already
scale, depth                 metres, by depth, by other poses, by a known length
guards, scores               which estimates are not believed; which clips the paper's filters drop
captions                     the scene in words, never the camera
report                       the page, and a picture per clip
"""
