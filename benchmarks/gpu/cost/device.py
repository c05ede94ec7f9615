"""What one H200 does at best: the constants of the cost model. None was measured by this project.

A measured value replaces its line here as soon as a GPU was lent (`python -m benchmarks.gpu.kit` measures bandwidth,
matrix products, kernels and host times). GUIDE is the table of arithmetic instructions in NVIDIA's CUDA C++ programming
guide, compute capability 9.0; ESTIMATE is a guess of the usual size.
"""

NUM_SMS = 132  # H200 SXM datasheet
CLOCK_HZ = 1.83e9  # what the datasheet's 989 TFLOP/s at 2,048 multiply-adds a cycle and SM come to
PEAK_BYTES_PER_S = 4.8e12  # datasheet: what a step's budget is taken from
DRAM_BYTES_PER_S = 4.3e12  # ESTIMATE: nine tenths of the datasheet's
L2_BYTES_PER_S = 7.0e12  # ESTIMATE: what matrix products of 128 x 256 tiles at 600 TFLOP/s read of the cache
L2_BYTES = 30e6  # ESTIMATE: half of the 50 MB and more; what a kernel has just written is found there up to this size
MATRIX_SHARE = 0.7  # ESTIMATE: of the datasheet's matrix rate, reached by Triton's products

# Cycles of an SM for one instruction of one warp, by pipe: 32 lanes over the results a cycle that GUIDE states.
PIPE_CYCLES = {
    "issue": 1 / 4,  # four schedulers, one instruction each
    "alu": 32 / 64,  # integer addition, comparison, logic, selection
    "fma": 32 / 128,  # float32
    "imad": 32 / 64,  # 32-bit integer multiplication
    "fp64": 32 / 64,
    "xu": 32 / 16,  # exp, log, reciprocal, 64-bit conversions
    "lsu": 32 / 32,  # shuffles, shared and global memory, without the bytes
}
MATRIX_MULTIPLY_ADDS = 2048  # bfloat16, a cycle and SM
SHARED_BYTES_PER_CYCLE = 128

# Cycles until a result that the code waits for by a scoreboard is there. ESTIMATE, after published microbenchmarks.
GLOBAL_LATENCY = 550
ATOMIC_LATENCY = 700
SHARED_LATENCY = 30
SHUFFLE_LATENCY = 25
OTHER_LATENCY = 20
BARRIER_CYCLES = 20  # of a block whose warps arrive together

# An SM: registers, bytes of shared memory, warps, blocks. GUIDE's table of capabilities.
NUM_REGISTERS, SHARED_BYTES, NUM_WARPS, NUM_BLOCKS = 65536, 233472, 64, 32
RESERVED_BYTES = 1024  # of a block's shared memory

# Microseconds. ESTIMATE.
LAUNCH_US = 1.5  # between two kernels of a stream that the host has run ahead of
NODE_US = 1.2  # between two nodes of a CUDA graph
COLLECTIVE_US = 12.0  # a small all-gather between two GPUs

# Host microseconds. ESTIMATE, and rather low: a step of seven launches once took 320 us on a CPU up to the driver call.
# Launches and calls are counted; what one takes is not measured.
HOST_TRITON_US = 25.0
HOST_TORCH_US = 2.0
HOST_DRIVER_US = 4.0  # ESTIMATE: the driver call of one launch
HOST_COLLECTIVE_US = 40.0  # ESTIMATE
