"""Training data, and how they become latents in memory.

rooms      rendered clips of rooms, in clip files that are a function of their index
videos     your own videos, read and checked
sidecars   the poses beside them, in every accepted convention
formats/   the cameras of other tools, made sidecars of
motion     checks paths for jumps and rows in the wrong places
packed     your videos at the size and rate of a world, in webdataset tars
published  the layout of the published latents, read and written
filters    the paper's ranges of scores
latents    clips as latents, cut into windows for every stage
pairs      what a world imagines of sessions, beside the truth, for the refiner
source     --data: finds which of the two layouts a folder has, and reads its clips
command    sana-wm data validate | import | pack | latents
"""
