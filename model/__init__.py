"""The network and its state; imports torch, numpy and safetensors, never Gymnasium. README.md in this folder
has the map and the formulas.

In reading order:

world, base, clip          `WorldModel`: start, step, play; what it shares with `ClipModel`
protocol                   the methods that environments call
state, tree, contexts      the values that pass between calls
state_check, template      whether a saved session can be one of this world
sampler, noise             noise levels and Euler steps; the noise of sessions
refiner                    the second stage: latents to sharper ones
camera_inputs              poses to the network's inputs
config                     sizes, switches, presets
network/                   what computes: transformer, block, attention, gated_delta, ...
codecs/                    pictures and prompts to latents and features
storage/                   files, layouts, worlds by name
quantize, memory, cores    few bits; bytes by stage; threads
kernels/                   the same operations, faster on a CPU
"""
