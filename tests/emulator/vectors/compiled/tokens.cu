// A state machine over bytes: tables of strings, a dense switch, pointers into constant memory.
__constant__ const char* const kNames[] = {"zero", "one", "two", "three", "many"};
__constant__ signed char kWeights[16] = {1, -2, 3, -4, 5, -6, 7, -8, 9, -10, 11, -12, 13, -14, 15, -16};
__device__ short tally[4] = {100, 200, 300, 400};
extern "C" __global__ void kernel(const unsigned char* text, int* out) {
    int state = 0, value = 0;
    for (int i = 0; i < 40; ++i) {
        const unsigned char c = text[threadIdx.x * 40 + i];
        switch (c % 12) {
            case 0: state = 0; break;
            case 1: value += c; break;
            case 2: value ^= state << 3; state = 1; break;
            case 3: value = value * 3 + 1; break;
            case 4: if (state == 1) { value -= 7; break; }  // else the next case
            case 5: state = 2; break;
            case 6: value += kNames[c % 5][state & 1]; break;
            case 7: value = -value; break;
            case 8: if (value > 1000) i += 2; break;
            case 9: value += kWeights[(c + i) & 15]; state = 3; break;
            case 10: value = (value << 1) | (value >> 31 & 1); break;
            default: value += tally[state]; break;
        }
    }
    out[threadIdx.x] = value;
}
