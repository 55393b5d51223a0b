// Packed weights: RV_WBITS bits each, in one stream of bits a row. A chunk is 32 weights, which are RV_WBITS words, and
// lies in one group. RV_FLOAT4: the bits are a 4-bit float and a scale is a power of two; else weight = scale * q + bias.
struct rv_chunk {
  unsigned int words[RV_WBITS];
};

RV_FN rv_chunk rv_fetch_chunk(const RV_GLOBAL uint32_t* from) {
  rv_chunk chunk;
#if RV_WIDE == 4
  RV_UNROLL for (int i = 0; i < RV_WBITS / 4; i++) {
    const uint4 w = *((const RV_GLOBAL uint4*)from + i);
    chunk.words[4 * i] = w.x; chunk.words[4 * i + 1] = w.y; chunk.words[4 * i + 2] = w.z; chunk.words[4 * i + 3] = w.w;
  }
#elif RV_WIDE == 2
  RV_UNROLL for (int i = 0; i < RV_WBITS / 2; i++) {
    const uint2 w = *((const RV_GLOBAL uint2*)from + i);
    chunk.words[2 * i] = w.x; chunk.words[2 * i + 1] = w.y;
  }
#else
  RV_UNROLL for (int i = 0; i < RV_WBITS; i++) chunk.words[i] = from[i];
#endif
  return chunk;
}

// Weight `i` of a chunk. `i` is a constant wherever the loop around is unrolled.
RV_FN float rv_weight(rv_chunk chunk, int i, float scale, float bias) {
  const int word = i * RV_WBITS / 32, shift = i * RV_WBITS % 32;
  unsigned int q = chunk.words[word] >> shift;
  if (shift + RV_WBITS > 32) q |= chunk.words[word + 1] << (32 - shift);
  q &= (1u << RV_WBITS) - 1;
#ifdef RV_FLOAT4  // sign, two bits of exponent, one of mantissa: 0, 0.5, 1, 1.5, 2, 3, 4, 6
  const unsigned int size = q & 7u;
  const float normal = RV_BITS((126u + (size >> 1)) << 23 | (size & 1u) << 22);
  const float value = size < 2 ? 0.5f * (float)size : normal;
  return (q & 8u ? -value : value) * scale;
#else
  return RV_FMA((float)q, scale, bias);
#endif
}
