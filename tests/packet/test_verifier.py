"""What the kernel's verifier has to go through of each program: there must be room left, on any kernel."""

LIMIT = 1_000_000  # instructions, and the verifier gives up (BPF_COMPLEXITY_LIMIT_INSNS)
BUDGET = LIMIT // 2  # old kernels count up to twice as many as new ones


def test_no_program_comes_near_the_limit(loaded):
    verified = loaded.program.verified()

    print(verified)
    assert all(0 < number <= BUDGET for number in verified.values()), verified
