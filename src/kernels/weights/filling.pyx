"""Filling packed matrices: from stored rows to the order in which the kernels read them, row group by row group.

The formats of files whose bytes already hold the right columns together (TQ2_0, I2_S, Q4_0, Q4_1, Q8_0) are packed by
transposing 32-bit words; Q5_0 and Q5_1 become bytes and then planes; floats go as they are, or are rounded to 8 bits;
anything else comes as codes, one byte each. And the way back, for single rows.
"""
from libc.stddef cimport size_t
from libc.stdint cimport int8_t, int32_t, uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy, memset

from lowbit._kernels.dispatch cimport (
    LB_F16, LB_F32, LB_ROWS, LB_U2, LB_UT, lb_has_minima, lb_has_planes, lb_matrix, lb_multiples, lb_scales_at,
    lb_super,
)


cdef extern from "half.h":
    float lb_half_to_float(uint16_t h) noexcept nogil
    float lb_bits_to_float(uint32_t bits) noexcept nogil

cdef extern from "planes.h":
    enum:
        LB_PLANE_COLS
    void lb_pack_planes(const uint8_t *codes, int bits, uint8_t *words) noexcept nogil
    const uint8_t (*lb_tables)[16]
    int32_t lb_plane_code(const uint8_t *words, int bits, int32_t column) noexcept nogil

cdef extern from "rounding.h":
    void lb_five_bit_codes(const uint8_t *nibbles, const uint8_t *fifths, uint8_t *codes) noexcept nogil
    int lb_round_weights(const float *w, int32_t n, uint8_t *codes, uint16_t *scale) noexcept nogil


cdef void fill_blocks(void *context, int32_t begin, int32_t end) noexcept nogil:
    cdef Fill *c = <Fill *>context
    cdef const lb_matrix *m = c.m
    cdef BlockLayout layout = c.layout
    cdef size_t row_bytes = <size_t>c.blocks_per_row * layout.block_bytes
    cdef size_t step = 2 * LB_ROWS if layout.minimum_at else LB_ROWS     # from the scales of a block to the next
    cdef uint32_t empty = <uint32_t>empty_byte(m.format) * 0x01010101u
    cdef uint32_t w, invalid = 0
    cdef uint16_t scale
    cdef int32_t group, lane, block, t
    cdef const uint8_t *source
    cdef const uint8_t *codes
    cdef uint8_t five_bits[32]
    cdef uint8_t *target
    cdef uint16_t *scales
    cdef bint zero
    for group in range(begin, end):
        target = <uint8_t *>m.codes + <size_t>(c.first_group + group) * m.words * 64
        scales = NULL
        if m.scales_f16:
            scales = <uint16_t *>m.scales + lb_scales_at(m, c.first_group + group, 0)
        for lane in range(min(<int32_t>LB_ROWS, c.rows - group * LB_ROWS)):
            source = c.source + (<size_t>group * LB_ROWS + lane) * row_bytes
            for block in range(c.blocks_per_row):
                zero = False
                codes = source + layout.codes_at
                if layout.scale_at >= 0:
                    memcpy(&scale, source + layout.scale_at, 2)
                    if scale & 0x7c00u == 0x7c00u:
                        c.bad_scale = True
                    if c.one_scale:
                        zero = scale & 0x7fffu == 0
                    else:
                        scales[block * step + lane] = scale
                if layout.minimum_at:
                    memcpy(&scale, source + layout.minimum_at, 2)
                    if scale & 0x7c00u == 0x7c00u:
                        c.bad_scale = True
                    scales[block * step + LB_ROWS + lane] = scale
                if layout.fifths_at:
                    lb_five_bit_codes(codes, source + layout.fifths_at, five_bits)
                    lb_pack_planes(five_bits, 5, target + <size_t>block * layout.words * 64 + lane * 4)
                    source += layout.block_bytes
                    continue
                for t in range(layout.words):
                    memcpy(&w, codes + 4 * t, 4)
                    w ^= layout.flip
                    if layout.reverse:
                        w = ((w & 0x03030303u) << 6 | (w & 0x0c0c0c0cu) << 2 | (w >> 2 & 0x0c0c0c0cu)
                             | (w >> 6 & 0x03030303u))
                    if m.format == LB_U2:
                        invalid |= w & (w >> 1) & 0x55555555u
                    if zero:
                        w = empty
                    memcpy(target + (<size_t>block * layout.words + t) * 64 + lane * 4, &w, 4)
                source += layout.block_bytes
    if invalid:
        c.bad_code = True


cdef void fill_codes(void *context, int32_t begin, int32_t end) noexcept nogil:
    cdef Fill *c = <Fill *>context
    cdef const lb_matrix *m = c.m
    cdef int32_t fields = fields_of(m.format), bits = 8 // fields, block_words = m.block_cols // (4 * fields)
    cdef int32_t top = 2 if m.format == LB_U2 else (1 << bits) - 1
    cdef int32_t group, lane, words_left, words, start, column, f, t, b, byte, code
    cdef const uint8_t *source
    cdef uint8_t *target
    for group in range(begin, end):
        for lane in range(min(<int32_t>LB_ROWS, c.rows - group * LB_ROWS)):
            source = c.source + (<size_t>group * LB_ROWS + lane) * m.n_cols
            target = <uint8_t *>m.codes + <size_t>(c.first_group + group) * m.words * 64 + lane * 4
            words_left = m.words
            start = 0
            while words_left > 0:
                words = min(words_left, block_words)
                for t in range(words):
                    for b in range(4):
                        byte = 0
                        for f in range(fields):
                            column = start + 4 * words * f + 4 * t + b
                            code = source[column] if column < m.n_cols else offset_of(m)
                            if code > top:
                                c.bad_code = True
                            byte |= (code & ((1 << bits) - 1)) << (bits * f)
                        target[t * 64 + b] = <uint8_t>byte
                target += words * 64
                words_left -= words
                start += words * 4 * fields


cdef void fill_planes(void *context, int32_t begin, int32_t end) noexcept nogil:
    cdef Fill *c = <Fill *>context
    cdef const lb_matrix *m = c.m
    cdef int32_t group, lane, start, i
    cdef const uint8_t *source
    cdef uint8_t *target
    cdef uint8_t codes[32]
    for group in range(begin, end):
        for lane in range(min(<int32_t>LB_ROWS, c.rows - group * LB_ROWS)):
            source = c.source + (<size_t>group * LB_ROWS + lane) * m.n_cols
            target = <uint8_t *>m.codes + <size_t>(c.first_group + group) * m.words * 64 + lane * 4
            for start in range(0, m.n_cols, 32):
                for i in range(32):
                    codes[i] = source[start + i] if start + i < m.n_cols else 0
                    if codes[i] >> m.bits:
                        c.bad_code = True
                lb_pack_planes(codes, m.bits, target)
                target += 64 * m.bits


cdef int32_t trit_at(const uint8_t *w, int32_t words, int32_t column) noexcept nogil:
    """The code of a column of a T5 scale group that begins at `w` and has `words` words."""
    cdef int32_t block = column // 128 * 8, field = 4 * min(<int32_t>8, words - block), code, _f
    if column >= 16 * words:
        return w[(column - 16 * words) // 4 * 64 + column % 4] // 84
    column -= 16 * block
    code = w[(block + column % field // 4) * 64 + column % 4] % 84
    for _f in range(column // field):
        code //= 3
    return code % 3


cdef void fill_trits(void *context, int32_t begin, int32_t end) noexcept nogil:
    cdef Fill *c = <Fill *>context
    cdef const lb_matrix *m = c.m
    cdef int32_t group, lane, start, cols, words, t, b, block, field, first, i, f
    cdef int32_t code[5]
    cdef const uint8_t *source
    cdef uint8_t *target
    for group in range(begin, end):
        for lane in range(min(<int32_t>LB_ROWS, c.rows - group * LB_ROWS)):
            source = c.source + (<size_t>group * LB_ROWS + lane) * m.n_cols
            target = <uint8_t *>m.codes + <size_t>(c.first_group + group) * m.words * 64 + lane * 4
            start = 0
            while start < m.n_cols:
                cols = min(m.group_cols, m.n_cols - start)
                words = trit_words(cols)
                for t in range(words):
                    block = t // 8 * 8
                    field = 4 * min(<int32_t>8, words - block)
                    for b in range(4):
                        first = 16 * block + 4 * (t - block) + b
                        for f in range(5):
                            i = first + f * field if f < 4 else 16 * words + 4 * t + b
                            code[f] = source[i] if i < cols else 0
                            if code[f] > 2:
                                c.bad_code = True
                                code[f] = 0
                        target[b] = <uint8_t>(84 * code[4] + code[0] + 3 * code[1] + 9 * code[2] + 27 * code[3])
                    target += 64
                source += cols
                start += cols


cdef void fill_dense(void *context, int32_t begin, int32_t end) noexcept nogil:
    """Words of T5 from those of U2, where four columns beside one another share a word and a field, as in T5."""
    cdef Fill *c = <Fill *>context
    cdef const lb_matrix *m = c.m
    cdef const lb_matrix *u2 = c.u2
    cdef int32_t group, start, cols, words, t, f, i, column, block_words, length, shift
    cdef uint8_t factor
    cdef const uint8_t *source
    cdef uint8_t *target
    for group in range(begin, end):
        target = <uint8_t *>m.codes + <size_t>(c.first_group + group) * m.words * 64
        start = 0
        while start < m.n_cols:
            cols = min(m.group_cols, m.n_cols - start)
            words = trit_words(cols)
            for t in range(words):
                memset(target, 0, 64)
                factor = 1
                for f in range(5):
                    column = 16 * words + 4 * t
                    if f < 4:
                        column = 128 * (t // 8) + 4 * (t % 8) + 4 * f * min(<int32_t>8, words - t // 8 * 8)
                    if column < cols:
                        column += start     # and then within a block of U2
                        block_words = u2.block_cols // 16
                        source = u2.codes + (<size_t>group * u2.words + column // u2.block_cols * block_words) * 64
                        length = min(block_words, u2.words - column // u2.block_cols * block_words)
                        column %= u2.block_cols
                        source += column // 4 % length * 64
                        shift = column // 4 // length * 2
                        for i in range(64):
                            target[i] += factor * (source[i] >> shift & 3)
                    factor = 84 if f == 3 else factor * 3
                target += 64
            start += cols


cdef void fill_floats(void *context, int32_t begin, int32_t end) noexcept nogil:
    cdef Fill *c = <Fill *>context
    cdef const lb_matrix *m = c.m
    cdef size_t size = value_size(m.format)
    cdef int32_t group, lane, column
    cdef const uint8_t *source
    cdef uint8_t *target
    for group in range(begin, end):
        for lane in range(min(<int32_t>LB_ROWS, c.rows - group * LB_ROWS)):
            source = c.source + (<size_t>group * LB_ROWS + lane) * m.n_cols * size
            target = <uint8_t *>m.codes + (<size_t>(c.first_group + group) * m.n_cols * LB_ROWS + lane) * size
            if size == 4:
                for column in range(m.n_cols):
                    memcpy(target + <size_t>column * 64, source + <size_t>column * 4, 4)
            else:
                for column in range(m.n_cols):
                    memcpy(target + <size_t>column * 32, source + <size_t>column * 2, 2)


cdef float scale_of(const lb_matrix *m, int32_t row_group, int32_t group, int32_t lane, float *minimum) noexcept nogil:
    """The scale of a row in one of its scale groups, and the minimum where there are such."""
    cdef const float *super_scales
    cdef const int8_t *multiples
    cdef size_t at = lb_scales_at(m, row_group, group) + lane
    if m.scales_super:
        super_scales = lb_super(m, row_group, group)
        multiples = lb_multiples(m, super_scales, group)
        minimum[0] = super_scales[LB_ROWS + lane] * multiples[LB_ROWS + lane] if lb_has_minima(m.format) else 0
        return super_scales[lane] * multiples[lane]
    if m.scales_f16:
        minimum[0] = lb_half_to_float((<const uint16_t *>m.scales)[at + LB_ROWS]) if lb_has_minima(m.format) else 0
        return lb_half_to_float((<const uint16_t *>m.scales)[at])
    minimum[0] = (<const float *>m.scales)[at + LB_ROWS] if lb_has_minima(m.format) else 0
    return (<const float *>m.scales)[at]


cdef void matrix_row(const lb_matrix *m, int32_t row, float *out) noexcept nogil:
    """Dequantise one row."""
    cdef int32_t lane = row % LB_ROWS, group = row // LB_ROWS, fields, bits, block_words, words_left, words
    cdef int32_t t, b, f, column, columns, start = 0, g
    cdef const uint8_t *w
    cdef size_t at
    cdef float scale, minimum = 0
    if m.format >= LB_F32:
        at = <size_t>group * m.n_cols * LB_ROWS + lane
        for column in range(m.n_cols):
            if m.format == LB_F32:
                out[column] = (<const float *>m.codes)[at]
            elif m.format == LB_F16:
                out[column] = lb_half_to_float((<const uint16_t *>m.codes)[at])
            else:
                out[column] = lb_bits_to_float(<uint32_t>(<const uint16_t *>m.codes)[at] << 16)
            at += LB_ROWS
        return
    if m.format == LB_T5:
        w = m.codes + <size_t>group * m.words * 64 + lane * 4
        for g in range(m.n_groups):
            columns = min(m.group_cols, m.n_cols - start)
            scale = scale_of(m, group, g, lane, &minimum)
            for column in range(columns):
                out[start + column] = (trit_at(w, trit_words(columns), column) - 1) * scale
            w += trit_words(columns) * 64
            start += columns
        return
    if lb_has_planes(m.format):
        w = m.codes + <size_t>group * m.words * 64 + lane * 4
        for column in range(m.n_cols):
            scale = scale_of(m, group, column // m.group_cols, lane, &minimum)
            t = lb_plane_code(w + column // LB_PLANE_COLS * m.bits * 64, m.bits, column % LB_PLANE_COLS)
            out[column] = ((<int32_t>lb_tables[m.table][t] if m.format == LB_UT else t) - offset_of(m)) * scale
            if lb_has_minima(m.format):
                out[column] += minimum
        return
    fields = fields_of(m.format)
    bits = 8 // fields
    block_words = m.block_cols // (4 * fields)
    words_left = m.words
    w = m.codes + <size_t>group * m.words * 64 + lane * 4
    while words_left > 0:
        words = min(words_left, block_words)
        g = start // m.group_cols if m.n_groups > 1 else 0
        scale = scale_of(m, group, g, lane, &minimum)
        for f in range(fields):
            for t in range(words):
                for b in range(4):
                    column = start + 4 * words * f + 4 * t + b
                    if column < m.n_cols:
                        out[column] = (((w[t * 64 + b] >> (bits * f)) & ((1 << bits) - 1))
                                       - offset_of(m)) * scale
                        if lb_has_minima(m.format):
                            out[column] += minimum
        w += words * 64
        words_left -= words
        start += words * 4 * fields


cdef inline float float_at(const uint8_t *source, int32_t format, size_t i) noexcept nogil:
    """One of the stored floats, which can lie at any byte."""
    cdef uint16_t half
    memcpy(&half, source + 2 * i, 2)
    if format == LB_F16:
        return lb_half_to_float(half)
    return lb_bits_to_float(<uint32_t>half << 16)


cdef void fill_rounded(void *context, int32_t begin, int32_t end) noexcept nogil:
    """Round 32 weights after the other as `rounding.h` does."""
    cdef Fill *c = <Fill *>context
    cdef const lb_matrix *m = c.m
    cdef int32_t group, lane, g, i, n
    cdef float w[32]
    cdef uint8_t codes[32]
    cdef uint16_t scale = 0
    cdef size_t at
    cdef uint8_t *target
    for group in range(begin, end):
        for lane in range(min(<int32_t>LB_ROWS, c.rows - group * LB_ROWS)):
            at = (<size_t>group * LB_ROWS + lane) * m.n_cols
            for g in range(m.n_groups):
                n = min(32, m.n_cols - 32 * g)
                if c.source_format == LB_F32:
                    memcpy(w, c.source + 4 * at, 4 * n)
                else:
                    for i in range(n):
                        w[i] = float_at(c.source, c.source_format, at + i)
                at += n
                if not lb_round_weights(w, n, codes, &scale):
                    c.bad_scale = True
                    continue
                (<uint16_t *>m.scales)[(<size_t>(c.first_group + group) * m.n_groups + g) * LB_ROWS + lane] = scale
                target = <uint8_t *>m.codes + (<size_t>(c.first_group + group) * m.words + 8 * g) * 64 + lane * 4
                for i in range((n + 3) // 4):
                    memcpy(target + 64 * i, codes + 4 * i, 4)
