"""What is trained on, and how it becomes latents in memory.

rooms      rendered clips of rooms, in files that are a function of their index
videos     your own videos, read and checked
sidecars   the poses beside them, in every convention that is taken
packed     your videos at the size and rate of a world, in tar files
published  the layout of the published latents, read and written
filters    the paper's ranges of scores
latents    clips as latents, cut into windows for every stage
source     what --data means: which of the two layouts lies there, and its clips
command    sana-wm data validate | pack | latents
"""
