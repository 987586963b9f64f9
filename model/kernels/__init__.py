"""The network's operations: plain torch, the reference, and what is faster on the processor at hand.

operations.py   the table of operations, and the plain one
select.py       chooses table and dtype by device, dtype, sizes and measured speed
linear.py  norms.py  gates.py  rays.py  short_conv.py  delta_rule.py  attention.py
                one operation each for a CPU, forward and backward, equal to the plain function that it names
traced.py       what torch.compile should see in place of some of the plain ones
cpu.cpp *.h  library.py   the C++ underneath, and how it is called
"""
