// Pieces of quantized_matmul.cu. A lane holds, of each group and of each of its weight rows, a quarter: RV_LANE_WORDS words.
// RV_RUN groups are loaded at once. RV_HALVES 2: an 8-bit weight enters as two 4-bit ones, as bfloat16 has too few digits.
#undef __global__
#define __global__ __attribute__((global)) __launch_bounds__(RV_SIMDGROUPS * 32, RV_RESIDENT)
#if RV_KIND == 2
#define RV_ONES 0x3f803f80u
#define RV_NEAR 0x43004300u  // 128: the next bfloat16 is 129
#else
#define RV_ONES 0x3c003c00u
#define RV_NEAR 0x64006400u  // 1024: the next half is 1025
#endif

struct rv_run {
  unsigned words[RV_RUN][RV_M][2][RV_LANE_WORDS];
  unsigned scales[RV_M][2][(RV_RUN + 1) / 2], biases[RV_M][2][(RV_RUN + 1) / 2];
};

// RV_RUN 16-bit elements from `from` on; where they are not aligned together, one by one and up to `left`.
RV_FN void rv_fetch_elements(unsigned* to, const RV_T* from, int left) {
#if RV_ELEMENT_WORDS == 2
  const uint2 w = *(const uint2*)from;
  to[0] = w.x; to[1] = w.y;
#elif RV_ELEMENT_WORDS == 1
  to[0] = *(const unsigned*)from;
#else
  const unsigned short* bits = (const unsigned short*)from;
  RV_UNROLL for (int i = 0; i < RV_RUN; i++) {
    const unsigned bit = i < left ? bits[i] : 0u;
    to[i / 2] = i % 2 == 0 ? bit : to[i / 2] | bit << 16;
  }
#endif
}

// Element `i` of those, as a float.
RV_FN float rv_element_of(const unsigned* from, int i) {
  const unsigned bits = i % 2 == 0 ? from[i / 2] & 0xffffu : from[i / 2] >> 16;
#if RV_KIND == 2
  return RV_BITS(bits << 16);
#else
  return rv_half(bits);
#endif
}

RV_FN void rv_fetch_run(rv_run& run, const uint32_t* weight, const RV_T* scales, const RV_T* biases, int first, int at,
                        int outs, int g, int t) {
  const int groups = RV_K / RV_QGROUP;
  RV_UNROLL for (int m = 0; m < RV_M; m++) {
    RV_UNROLL for (int h = 0; h < 2; h++) {
      const int row = first + m * 16 + h * 8 + g, n = row < outs ? row : outs - 1;
      RV_UNROLL for (int i = 0; i < RV_RUN; i++) {
        const int group = at + i < groups ? at + i : groups - 1;
        const uint32_t* from = weight + ((rv_index)n * groups + group) * (4 * RV_LANE_WORDS) + t * RV_LANE_WORDS;
        unsigned* to = run.words[i][m][h];
#if RV_LANE_WORDS >= 4
        RV_UNROLL for (int k = 0; k < RV_LANE_WORDS / 4; k++) {
          const uint4 w = *((const uint4*)from + k);
          to[4 * k] = w.x; to[4 * k + 1] = w.y; to[4 * k + 2] = w.z; to[4 * k + 3] = w.w;
        }
#elif RV_LANE_WORDS == 2
        const uint2 w = *(const uint2*)from;
        to[0] = w.x; to[1] = w.y;
#else
        to[0] = *from;
#endif
      }
      rv_fetch_elements(run.scales[m][h], scales + (rv_index)n * groups + at, groups - at);
      rv_fetch_elements(run.biases[m][h], biases + (rv_index)n * groups + at, groups - at);
    }
  }
}

// Eight weights as pairs (0, 4), (1, 5), (2, 6), (3, 7): the low bits of each half of a word.
RV_FN void rv_weight_pairs(const unsigned* words, unsigned* pairs) {
#if RV_WBITS == 4
  RV_UNROLL for (int i = 0; i < 4; i++) pairs[i] = words[0] >> (4 * i);
#else
  pairs[0] = __byte_perm(words[0], words[1], 0x4400u);
  pairs[1] = __byte_perm(words[0], words[1], 0x5511u);
  pairs[2] = __byte_perm(words[0], words[1], 0x6622u);
  pairs[3] = __byte_perm(words[0], words[1], 0x7733u);
#endif
}

RV_FN unsigned rv_low(unsigned pair) {  // two numbers near 128 or 1024
#if RV_WHOLE_BYTES == 1
  return (pair & 0x00ff00ffu) | RV_NEAR;
#else
  return (pair & 0x000f000fu) | RV_NEAR;
#endif
}
