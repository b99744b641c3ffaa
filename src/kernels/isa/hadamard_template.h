/*
 * The fast Walsh-Hadamard transform, for every instruction set; included by float_template.h.
 *
 * Each value is the sum or difference of two values of the stage before it, so the order of the strides alone decides
 * the bits, and not how many pairs are done at a time.
 */
/* The short strides are constants, of which compilers make shuffles: six times as fast as a loop over the stride. */
LB_INLINED void short_butterflies(float *x, int32_t n, const int stride) {
    for (int32_t i = 0; i < n; i += 2 * stride) {
        for (int j = 0; j < stride; j++) {
            const float a = x[i + j], b = x[i + j + stride];
            x[i + j] = a + b;
            x[i + j + stride] = a - b;
        }
    }
}

void LB_NAME(lb_hadamard)(float *x, int32_t n, int32_t block) {
    for (const float *end = x + n; x < end; x += block) { /* block by block, which stays in the first cache */
        if (block > 1) short_butterflies(x, block, 1);
        if (block > 2) short_butterflies(x, block, 2);
        if (block > 4) short_butterflies(x, block, 4);
        if (block > 8) short_butterflies(x, block, 8);
        for (int32_t stride = 16; stride < block; stride *= 2) {
            for (int32_t start = 0; start < block; start += 2 * stride) {
                for (int32_t i = start; i < start + stride; i += 16) {
                    const f32x16 a = v_load(x + i), b = v_load(x + i + stride);
                    v_store(x + i, v_add(a, b));
                    v_store(x + i + stride, v_sub(a, b));
                }
            }
        }
    }
}
