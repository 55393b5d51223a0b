// The instructions that only CUDA has. RV_KIND 2 multiplies bfloat16, 1 and 3 half. Lane = 4 * g + t: of an m16n8k16
// product an A fragment has rows g and g + 8, a B fragment column g, a C fragment columns 2 t and 2 t + 1.
RV_FN void rv_mma(float* c, unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0, unsigned b1) {
#if RV_KIND == 2
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
#else
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
#endif
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

RV_FN float rv_exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

RV_FN unsigned rv_pack(float low, float high) {
  unsigned word;
#if RV_KIND == 2
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
#else
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
#endif
  return word;
}

RV_FN unsigned rv_transposed(unsigned word) {  // of an 8 x 8 matrix of 16-bit elements, one pair a lane
  unsigned turned;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(turned) : "r"(word));
  return turned;
}

RV_FN unsigned rv_less(unsigned halves) {  // 1024 + 128 + x -> x, twice
  unsigned word;
  asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(word) : "r"(halves), "r"(0x64806480u));
  return word;
}
