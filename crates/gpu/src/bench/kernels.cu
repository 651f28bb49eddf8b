// Benchmark kernels, compiled at run time by NVRTC without headers.

typedef unsigned int u32;
typedef unsigned long long u64;

// Representative input data: a hash of the index (PCG, O'Neill 2014), converted to values of magnitude 0.5 to 1.
__device__ u32 hash(u64 i) {
    u32 state = (u32)i * 747796405u + (u32)(i >> 32) + 2891336453u;
    u32 word = ((state >> ((state >> 28) + 4u)) ^ state) * 277803737u;
    return (word >> 22) ^ word;
}

// Fills out with n numbers. kind: 0 fp64, 1 fp32, 2 fp16, 3 bf16, 4 fp8 (e4m3), 5 int8.
extern "C" __global__ void fill(unsigned char* out, u64 n, int kind) {
    for (u64 i = blockIdx.x * (u64)blockDim.x + threadIdx.x; i < n; i += (u64)gridDim.x * blockDim.x) {
        u32 r = hash(i);
        u32 sign = r >> 31;
        switch (kind) {
            case 0: ((u64*)out)[i] = ((u64)sign << 63) | (1022ull << 52) | ((u64)(r & 0x7fffffffu) << 21); break;
            case 1: ((u32*)out)[i] = (sign << 31) | (126u << 23) | (r & 0x7fffffu); break;
            case 2: ((unsigned short*)out)[i] = (unsigned short)((sign << 15) | (14u << 10) | (r & 0x3ffu)); break;
            case 3: ((unsigned short*)out)[i] = (unsigned short)((sign << 15) | (126u << 7) | (r & 0x7fu)); break;
            case 4: out[i] = (unsigned char)((sign << 7) | (6u << 3) | (r & 7u)); break;
            default: out[i] = (unsigned char)r; break;
        }
    }
}

// Multiply-adds on the CUDA cores. Eight independent chains hide the latency of four cycles.
template <typename T> __device__ void chains(T* out, int steps) {
    T a[8];
    T factor = (T)0.999999, addend = (T)0.000001;
    for (int i = 0; i < 8; i++) a[i] = (T)(threadIdx.x + i) * (T)0.001;
    for (int s = 0; s < steps; s++) {
#pragma unroll
        for (int u = 0; u < 16; u++) {
#pragma unroll
            for (int i = 0; i < 8; i++) a[i] = a[i] * factor + addend;
        }
    }
    T sum = (T)0;
    for (int i = 0; i < 8; i++) sum += a[i];
    // Never true, but it prevents the compiler from removing the computation.
    if (sum == (T)12345.678) out[0] = sum;
}
extern "C" __global__ void fma_fp32(float* out, int steps) { chains(out, steps); }
extern "C" __global__ void fma_fp64(double* out, int steps) { chains(out, steps); }

extern "C" __global__ void memory_read(const float4* in, u64 n, float* out) {
    float sum = 0.0f;
    for (u64 i = blockIdx.x * (u64)blockDim.x + threadIdx.x; i < n; i += (u64)gridDim.x * blockDim.x) {
        float4 v = in[i];
        sum += v.x + v.y + v.z + v.w;
    }
    if (sum == 12345.678f) out[0] = sum;
}

extern "C" __global__ void memory_write(float4* out, u64 n, float value) {
    float4 v = make_float4(value, value, value, value);
    for (u64 i = blockIdx.x * (u64)blockDim.x + threadIdx.x; i < n; i += (u64)gridDim.x * blockDim.x) out[i] = v;
}

extern "C" __global__ void memory_copy(const float4* in, float4* out, u64 n) {
    for (u64 i = blockIdx.x * (u64)blockDim.x + threadIdx.x; i < n; i += (u64)gridDim.x * blockDim.x) out[i] = in[i];
}

extern "C" __global__ void memory_triad(const float4* a, const float4* b, float4* c, u64 n) {
    for (u64 i = blockIdx.x * (u64)blockDim.x + threadIdx.x; i < n; i += (u64)gridDim.x * blockDim.x) {
        float4 x = a[i], y = b[i];
        c[i] = make_float4(x.x + 3.0f * y.x, x.y + 3.0f * y.y, x.z + 3.0f * y.z, x.w + 3.0f * y.w);
    }
}

// Reads the same data repeatedly, so that it is served by the L2 cache; __ldcg bypasses the L1.
extern "C" __global__ void l2_read(const float4* in, u64 n, int rounds, float* out) {
    float sum = 0.0f;
    for (int r = 0; r < rounds; r++) {
        u64 shift = (u64)r * 977u;
        for (u64 i = blockIdx.x * (u64)blockDim.x + threadIdx.x; i < n; i += (u64)gridDim.x * blockDim.x) {
            float4 v = __ldcg(in + (i + shift) % n);
            sum += v.x + v.y + v.z + v.w;
        }
    }
    if (sum == 12345.678f) out[0] = sum;
}

extern "C" __global__ void shared_read(int rounds, float* out) {
    __shared__ float4 tile[1024];
    tile[threadIdx.x] = make_float4(threadIdx.x, 1.0f, 2.0f, 3.0f);
    __syncthreads();
    float sum = 0.0f;
    for (int r = 0; r < rounds; r++) {
#pragma unroll
        for (int u = 0; u < 8; u++) {
            float4 v = tile[(threadIdx.x + r + u * 32) & 1023];
            sum += v.x + v.y + v.z + v.w;
        }
    }
    if (sum == 12345.678f) out[0] = sum;
}

extern "C" __global__ void nothing() {}

// The patterns of the memory test; `accept/memory.rs` has the same function. `address` is in bytes from the start of the tested memory.
__device__ u64 pattern(int kind, u64 parameter, u64 address) {
    u64 word = address / 8;
    switch (kind) {
        case 0: return parameter;
        case 1: return 1ull << ((word + parameter) % 64);
        case 2: return 0x0101010101010101ull << ((word + parameter) % 8);
        case 3: return address;
        default: {
            u64 x = (address ^ (parameter << 56)) + 0x9e3779b97f4a7c15ull;
            x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
            x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
            return x ^ (x >> 31);
        }
    }
}

extern "C" __global__ void pattern_write(u64* data, u64 n, u64 offset, int kind, u64 parameter) {
    for (u64 i = blockIdx.x * (u64)blockDim.x + threadIdx.x; i < n; i += (u64)gridDim.x * blockDim.x)
        data[i] = pattern(kind, parameter, offset + i * 8);
}

// Counts wrong words in result[0]; the first to be counted leaves its address, written and read value in result[1] to [3].
extern "C" __global__ void pattern_check(u64* data, u64 n, u64 offset, int kind, u64 parameter, int inverted, u64* result) {
    for (u64 i = blockIdx.x * (u64)blockDim.x + threadIdx.x; i < n; i += (u64)gridDim.x * blockDim.x) {
        u64 written = pattern(kind, parameter, offset + i * 8);
        if (inverted) written = ~written;
        u64 read = data[i];
        if (read != written && atomicAdd(result, 1ull) == 0) {
            result[1] = offset + i * 8;
            result[2] = written;
            result[3] = read;
        }
        if (!inverted) data[i] = ~written;
    }
}

// Counts the words in which two results differ.
extern "C" __global__ void compare(const u64* a, const u64* b, u64 n, u64* different) {
    for (u64 i = blockIdx.x * (u64)blockDim.x + threadIdx.x; i < n; i += (u64)gridDim.x * blockDim.x)
        if (a[i] != b[i]) atomicAdd(different, 1ull);
}
