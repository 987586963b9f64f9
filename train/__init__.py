"""Training a world.

In reading order:

loop, stage, checkpoints     one loop for all stages; their base class; a training on disk
optim, levels, precision     Muon and AdamW; noise levels; dtypes
parallel, processes          clips and weights divided among processes
allocator                    memory of a training process
autoencoder                  stage 1
flow                         base of the stages of the transformer; then, each a few lines:
bidirectional, causal        stages 2 and 3
teacher_forcing              stage 3 as sessions go, on long clips
growth                       a deeper network that begins as the one it grew from
streaming, ode,              base of the streaming stages; stages 4 and 5 as published,
self_forcing, distill        and both in short, on the truth
refiner, lora                the second stage, in three phases; low-rank adapters
campaign, programs           one turn on a big GPU; its compiled blocks, checked against the plain ones
ladder, recipe, milestones   all stages by one command, scored on the way
export                       trained weights as a world folder
ablations, scale             ablations of the design; cost of training at scale, on paper
data/                        training data
annotate/                    poses for videos that have none
"""
