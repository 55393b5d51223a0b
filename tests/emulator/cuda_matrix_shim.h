// The instructions of metal_kernels/ptx.h by their definitions; included where that header stands.
#pragma once
inline float rv_one(uint bits) {
#if RV_KIND == 2
  return as_type<float>(bits << 16);
#else
  return (float)as_type<half>((ushort)bits);
#endif
}
inline float rv_exp2(float x) { return ::exp2f(x); }
inline uint rv_pack(float low, float high) {
#if RV_KIND == 2
  return uint(bfloat(low).bits) | uint(bfloat(high).bits) << 16;
#else
  return uint(as_type<ushort>((half)low)) | uint(as_type<ushort>((half)high)) << 16;
#endif
}
inline uint rv_from(uint word, int lane) {  // another lane's word
  return as_type<uint>(emulator::exchange(as_type<float>(word), [=](int) { return lane; }));
}
inline uint rv_transposed(uint word) {
  const int lane = emulator::current % 32, row = lane / 4, column = lane % 4 * 2;
  uint turned = 0;
  for (int e = 0; e < 2; e++) {  // element (column + e, row) is in lane 4 * (column + e) + row / 2
    const uint found = rv_from(word, 4 * (column + e) + row / 2);
    turned |= (found >> row % 2 * 16 & 0xffffu) << e * 16;
  }
  return turned;
}
inline void rv_mma(float* c, uint a0, uint a1, uint a2, uint a3, uint b0, uint b1) {
  const int lane = emulator::current % 32, g = lane / 4, t = lane % 4;
  float sums[4] = {c[0], c[1], c[2], c[3]};
  for (int k = 0; k < 4; k++) {  // the four lanes that share a row hold its 16 elements
    const uint rows[2][2] = {{rv_from(a0, 4 * g + k), rv_from(a2, 4 * g + k)}, {rv_from(a1, 4 * g + k), rv_from(a3, 4 * g + k)}};
    for (int n = 0; n < 2; n++) {
      const uint column[2] = {rv_from(b0, 4 * (2 * t + n) + k), rv_from(b1, 4 * (2 * t + n) + k)};
      for (int m = 0; m < 2; m++)
        for (int h = 0; h < 2; h++)
          sums[2 * m + n] += rv_one(rows[m][h]) * rv_one(column[h]) + rv_one(rows[m][h] >> 16) * rv_one(column[h] >> 16);
    }
  }
  for (int i = 0; i < 4; i++) c[i] = sums[i];
}
inline uint rv_less(uint halves) { return rv_pack(rv_one(halves & 0xffff) - 1152, rv_one(halves >> 16) - 1152); }
