"""Training a world.

In reading order:

loop, stage, checkpoints     one loop for all stages; what a stage brings; what a run leaves on disk
optim, levels, precision     Muon and AdamW; noise levels; dtypes
parallel, processes          clips and weights divided among processes
autoencoder                  stage 1
flow                         what the stages of the transformer share; then, each a few lines:
bidirectional, causal        stages 2 and 3
streaming, ode,              what streams on its own past; stages 4 and 5 as published,
self_forcing, distill        and both in short, on the truth
ladder, recipe, milestones   all stages by one command, scored on the way
export                       trained weights as a world folder
ablations, scale             what each choice is worth; what training at scale takes, on paper
data/                        what is trained on
"""
