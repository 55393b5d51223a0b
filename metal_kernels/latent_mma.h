// Pieces of latent_decode on CUDA's matrix units. A warp owns RV_SLICE elements of the latent, in loads of 32 elements
// by four lanes, and every RV_SIMDGROUPS-th run of 16 rotated elements.
#define RV_SLICE (RV_D / RV_SIMDGROUPS)
#define RV_LOADS_LATENT (RV_SLICE / 32)
#define RV_RUNS ((RV_VALUE_D / 16 + RV_SIMDGROUPS - 1) / RV_SIMDGROUPS)  // a warp's runs, at most
#define RV_M (RV_STEP / 16)

struct rv_tokens {  // tokens g, g + 8, ... of a stage: pairs of elements
  unsigned latent[2 * RV_M][RV_LOADS_LATENT * 4];
  unsigned turned[2 * RV_M][RV_RUNS * 2];
};

// Tokens past `last` repeat it: what they give is masked.
RV_FN void rv_load_tokens(rv_tokens& to, const RV_KV* latents, const RV_KV* turned, int last, int simd, int g, int t) {
  RV_UNROLL for (int r = 0; r < 2 * RV_M; r++) {
    const int token = min(g + 8 * r, last);
    const RV_KV* row = latents + token * RV_D + simd * RV_SLICE;
    RV_UNROLL for (int i = 0; i < RV_LOADS_LATENT; i++) {
      const uint4 w = *(const uint4*)(row + (4 * i + t) * 8);
      to.latent[r][4 * i] = w.x; to.latent[r][4 * i + 1] = w.y; to.latent[r][4 * i + 2] = w.z; to.latent[r][4 * i + 3] = w.w;
    }
    RV_UNROLL for (int i = 0; i < RV_RUNS; i++) {
      const int run = simd + i * RV_SIMDGROUPS;
      uint2 w = {0, 0};
      if (run < RV_VALUE_D / 16) w = *(const uint2*)(turned + token * RV_VALUE_D + run * 16 + t * 4);
      to.turned[r][2 * i] = w.x; to.turned[r][2 * i + 1] = w.y;
    }
  }
}

// MLX writes the kernel's signature; this is the only way to bound its registers, so that enough of them run at once.
#undef __global__
#define __global__ __attribute__((global)) __launch_bounds__(RV_SIMDGROUPS * 32, RV_RESIDENT)
