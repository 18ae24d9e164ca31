// Walks an implicit tree with a stack of its own in local memory: data decides depth, order and early ends.
extern "C" __global__ void kernel(const unsigned* seeds, unsigned* sums) {
    unsigned stack[24];
    unsigned state = seeds[threadIdx.x], sum = 0;
    int top = 0, visited = 0;
    stack[top++] = 1;
    while (top > 0 && visited < 200) {
        const unsigned node = stack[--top];
        ++visited;
        state = state * 1664525u + 1013904223u;
        sum = sum * 31u + (node ^ state >> 24);
        if (node & 0x8000u) continue;
        if ((state >> 16) % 5u == 0) {
            if (sum % 97u == 3) break;
            continue;
        }
        if (top < 22) {
            stack[top++] = node * 2;
            if (state & 0x40000u) stack[top++] = node * 2 + 1;
        }
    }
    for (int i = 0; i < top; ++i) sum += stack[(i * 7 + threadIdx.x) % top];
    sums[threadIdx.x] = sum + visited;
}
