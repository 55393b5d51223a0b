// Pieces of quantized_matmul.cu. A lane holds, of each group and of each of its weight rows, a quarter: RV_LANE_WORDS words.
// RV_RUN groups are loaded at once, RV_SHARE_RUN of which make the unit that warps share K by. RV_HALVES 2: an 8-bit weight enters as two 4-bit ones, as bfloat16 has too few digits.
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

RV_FN void rv_fetch_run(rv_run& run, const uint32_t* const* weights, const RV_T* const* all_scales,
                        const RV_T* const* all_biases, int groups, rv_index base, int first, int at, int outs, int g, int t) {
  RV_UNROLL for (int m = 0; m < RV_M; m++) {
    const uint32_t* weight = weights[m % RV_WEIGHTS];
    const RV_T *scales = all_scales[m % RV_WEIGHTS], *biases = all_biases[m % RV_WEIGHTS];
    RV_UNROLL for (int h = 0; h < 2; h++) {
      const int row = first + m / RV_WEIGHTS * 16 + h * 8 + g;
      const rv_index n = base + (row < outs ? row : outs - 1);
      RV_UNROLL for (int i = 0; i < RV_RUN; i++) {
        const int group = at + i < groups ? at + i : groups - 1;
        const uint32_t* from = weight + (n * groups + group) * (4 * RV_LANE_WORDS) + t * RV_LANE_WORDS;
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
      rv_fetch_elements(run.scales[m][h], scales + n * groups + at, groups - at);
      rv_fetch_elements(run.biases[m][h], biases + n * groups + at, groups - at);
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

// Where warp `simd`'s share of K begins, and where it would end but for the width: as many whole runs each.
RV_FN int rv_share(int groups, int simd) {
  return simd * ((groups + RV_SHARE_RUN * RV_SIMDGROUPS - 1) / (RV_SHARE_RUN * RV_SIMDGROUPS)) * RV_SHARE_RUN;
}

// Sums of this warp's share of K: weight rows `first` + 16 m + g (and + 8) of those between `base` and `base + outs`, times
// columns 8 c + 2 t (and + 1). Column 8 c + g is the row of x at from[c], or zeros where that is null. Of RV_WEIGHTS
// weights the tiles take turns, so that tiles 0 and 1 are the same rows of the first and of the second.
RV_FN void rv_warp_sums(float (*acc)[RV_C][4], const RV_T* const* from, const uint32_t* const* weights,
                        const RV_T* const* scales, const RV_T* const* biases, int width, rv_index base, int first, int outs,
                        int simd, int g, int t) {
  const int groups = width / RV_QGROUP, begin = rv_share(groups, simd), past = rv_share(groups, simd + 1);
  const int end = past < groups ? past : groups;
  RV_UNROLL for (int m = 0; m < RV_M; m++)
    RV_UNROLL for (int c = 0; c < RV_C; c++)
      RV_UNROLL for (int e = 0; e < 4; e++) acc[m][c][e] = 0;
  for (int run = begin; run < end; run += RV_RUN) {
    rv_run now;  // many warps and few registers hide the loads; a second set of registers, and loads ahead, were slower
    rv_fetch_run(now, weights, scales, biases, groups, base, first, run, outs, g, t);
    RV_UNROLL for (int i = 0; i < RV_RUN; i++) {
      if (run + i < end) {
        // What x has of this group stays in registers: each tile of weights needs it.
        unsigned b[RV_C][RV_QGROUP / 32][4];
        float ones[RV_C][4];
        RV_UNROLL for (int c = 0; c < RV_C; c++) {
          RV_UNROLL for (int e = 0; e < 4; e++) ones[c][e] = 0;
          RV_UNROLL for (int o = 0; o < RV_QGROUP / 32; o++) {
            uint4 w = {0, 0, 0, 0};
            if (from[c]) w = *(const uint4*)(from[c] + (run + i) * RV_QGROUP + t * (RV_QGROUP / 4) + o * 8);
            unsigned* const pairs = b[c][o];
            pairs[0] = __byte_perm(w.x, w.z, 0x5410u);  // elements 0 and 4, 1 and 5, ...
            pairs[1] = __byte_perm(w.x, w.z, 0x7632u);
            pairs[2] = __byte_perm(w.y, w.w, 0x5410u);
            pairs[3] = __byte_perm(w.y, w.w, 0x7632u);
            rv_mma(ones[c], RV_ONES, RV_ONES, RV_ONES, RV_ONES, pairs[0], pairs[1]);
            rv_mma(ones[c], RV_ONES, RV_ONES, RV_ONES, RV_ONES, pairs[2], pairs[3]);
          }
        }
        RV_UNROLL for (int m = 0; m < RV_M; m++) {
          float part[RV_C][4], high[RV_C][4];
          RV_UNROLL for (int c = 0; c < RV_C; c++)
            RV_UNROLL for (int e = 0; e < 4; e++) part[c][e] = high[c][e] = 0;
          RV_UNROLL for (int o = 0; o < RV_QGROUP / 32; o++) {
            unsigned upper[4], lower[4];  // of rows g and g + 8
            rv_weight_pairs(now.words[i][m][0] + o * RV_OCTET_WORDS, upper);
            rv_weight_pairs(now.words[i][m][1] + o * RV_OCTET_WORDS, lower);
            RV_UNROLL for (int c = 0; c < RV_C; c++) {
              const unsigned* const x2 = b[c][o];
              rv_mma(part[c], rv_low(upper[0]), rv_low(lower[0]), rv_low(upper[1]), rv_low(lower[1]), x2[0], x2[1]);
              rv_mma(part[c], rv_low(upper[2]), rv_low(lower[2]), rv_low(upper[3]), rv_low(lower[3]), x2[2], x2[3]);
#if RV_HALVES == 2
              rv_mma(high[c], rv_low(upper[0] >> 4), rv_low(lower[0] >> 4), rv_low(upper[1] >> 4), rv_low(lower[1] >> 4),
                     x2[0], x2[1]);
              rv_mma(high[c], rv_low(upper[2] >> 4), rv_low(lower[2] >> 4), rv_low(upper[3] >> 4), rv_low(lower[3] >> 4),
                     x2[2], x2[3]);
#endif
            }
          }
          RV_UNROLL for (int e = 0; e < 4; e++) {
            const float scale = rv_element_of(now.scales[m][e / 2], i);
            const float shift = fmaf(-RV_OFFSET, scale, rv_element_of(now.biases[m][e / 2], i));
            RV_UNROLL for (int c = 0; c < RV_C; c++) {
#if RV_HALVES == 2
              acc[m][c][e] = fmaf(scale * 16.0f, high[c][e], acc[m][c][e]);
#endif
              acc[m][c][e] = fmaf(scale, part[c][e], acc[m][c][e]);
              acc[m][c][e] = fmaf(shift, ones[c][e], acc[m][c][e]);
            }
          }
        }
      }
    }
  }
}
