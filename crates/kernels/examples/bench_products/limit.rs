//! What the processor can do at most: multiply-adds between registers, on all threads.

use std::fmt;
use std::hint::black_box;
use std::time::{Duration, Instant};

use fedpipe_kernels::Path;

/// The instruction that a product is made of, which bounds its speed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Instruction {
    /// `tdpbf16ps`: 8,192 multiply-adds of bf16.
    Tiles,
    /// `vdpbf16ps`: 32 multiply-adds of bf16.
    DotBf16,
    /// `vfmadd` on 16 f32.
    Fused512,
    /// `vfmadd` on 8 f32.
    Fused256,
    /// What the compiler makes of a plain loop.
    Plain,
}

impl Instruction {
    /// The instruction of a product on a path, over f32 weights or over narrower ones.
    ///
    /// # Panics
    /// When the processor does not support the path.
    pub fn of(path: Path, f32_weights: bool) -> Self {
        assert!(path.is_supported(), "{path}");
        match path {
            Path::Amx if !f32_weights => Self::Tiles,
            Path::Avx512Bf16 if !f32_weights => Self::DotBf16,
            Path::Amx | Path::Avx512Bf16 => Self::Fused512,
            Path::Avx2 => Self::Fused256,
            Path::Neon | Path::Portable => Self::Plain,
        }
    }

    /// Time that `steps` steps take on every thread at once, and their operations.
    fn run(self, steps: usize) -> (Duration, usize) {
        let start = Instant::now();
        let flop: usize = rayon::broadcast(|_| self.run_here(steps)).into_iter().sum();
        (start.elapsed(), steps * flop)
    }

    /// Runs the steps on this thread; returns the operations of one.
    fn run_here(self, steps: usize) -> usize {
        match self {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `of` makes it, for a path that is supported.
            Self::Tiles => unsafe { x86::tiles(steps) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Self::DotBf16 => unsafe { x86::dot_bf16(steps) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Self::Fused512 => unsafe { x86::fused_512(steps) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Self::Fused256 => unsafe { x86::fused_256(steps) },
            _ => plain(steps),
        }
    }
}

impl fmt::Display for Instruction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tiles => "bf16 dot, tile registers",
            Self::DotBf16 => "bf16 dot, 512 bits",
            Self::Fused512 => "f32 fma, 512 bits",
            Self::Fused256 => "f32 fma, 256 bits",
            Self::Plain => "f32, plain loop",
        })
    }
}

/// How fast the memory is read by all threads at once, in GB/s: what bounds products of few rows.
pub struct Memory {
    /// Far more than the caches hold.
    values: Vec<f32>,
    pub gb_s: f64,
}

impl Memory {
    pub fn new() -> Self {
        Self { values: vec![1.0; 1 << 26], gb_s: 0.0 }
    }

    /// Reads once; keeps the better figure.
    pub fn measure(&mut self) {
        const LANES: usize = 64;
        let values = &self.values;
        let start = Instant::now();
        rayon::broadcast(|thread| {
            let share = values.len() / thread.num_threads();
            let own = &values[thread.index() * share..][..share];
            let mut sums = [0f32; LANES];
            for piece in own.as_chunks::<LANES>().0 {
                sums.iter_mut().zip(piece).for_each(|(sum, value)| *sum += value);
            }
            black_box(sums);
        });
        self.gb_s = self.gb_s.max(size_of_val(values.as_slice()) as f64 / start.elapsed().as_secs_f64() / 1e9);
    }
}

/// The fastest that each instruction was seen. Measured again and again beside the products: the clock drifts.
#[derive(Clone, Default)]
pub struct Limits(Vec<(Instruction, f64)>);

impl Limits {
    /// Measures for a few milliseconds, and often enough that a call runs undisturbed; keeps the better figure.
    pub fn measure(&mut self, instruction: Instruction) {
        const STEPS: usize = 1 << 16;
        const OFTEN_ENOUGH: usize = 8;
        const LONG_ENOUGH: Duration = Duration::from_millis(3);
        let (mut best, mut calls) = (self.gflops(instruction), 0);
        let begin = Instant::now();
        while calls < OFTEN_ENOUGH || begin.elapsed() < LONG_ENOUGH {
            let (took, flop) = instruction.run(STEPS);
            best = best.max(flop as f64 / took.as_secs_f64() / 1e9);
            calls += 1;
        }
        match self.0.iter_mut().find(|(known, _)| *known == instruction) {
            Some((_, gflops)) => *gflops = best,
            None => self.0.push((instruction, best)),
        }
    }

    /// GFLOP/s on all threads; 0 when it was not measured.
    pub fn gflops(&self, instruction: Instruction) -> f64 {
        self.0.iter().find(|(known, _)| *known == instruction).map_or(0.0, |&(_, gflops)| gflops)
    }

    /// Everything measured.
    pub fn iter(&self) -> impl Iterator<Item = (Instruction, f64)> {
        self.0.iter().copied()
    }
}

fn plain(steps: usize) -> usize {
    const LANES: usize = 32;
    let mut sums = [1f32; LANES];
    let factor = black_box(0.5f32);
    for _ in 0..steps {
        sums.iter_mut().for_each(|sum| *sum = *sum * factor + factor);
    }
    black_box(sums);
    2 * LANES
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        __m512, __m512bh, _mm256_fmadd_ps, _mm256_set1_ps, _mm512_dpbf16_ps, _mm512_fmadd_ps, _mm512_set1_ps,
    };
    use std::hint::black_box;
    use std::mem::transmute;

    /// Enough independent sums to hide the latency of any of the instructions.
    const SUMS: usize = 14;

    /// # Safety
    /// The processor has AMX, and the system lets the process use it.
    pub unsafe fn tiles(steps: usize) -> usize {
        /// What `ldtilecfg` reads: a palette, sixteen widths in bytes, as many heights.
        #[repr(C, align(64))]
        struct Config {
            palette: [u8; 16],
            row_bytes: [u16; 16],
            rows: [u8; 16],
        }
        let mut config = Config { palette: [0; 16], row_bytes: [0; 16], rows: [0; 16] };
        config.palette[0] = 1;
        config.row_bytes[..8].fill(64);
        config.rows[..8].fill(16);
        // SAFETY: the caller's promise; nothing is read but the configuration, and nothing written but registers.
        unsafe {
            std::arch::asm!(
                "ldtilecfg [{config}]",
                "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
                "tilezero tmm4", "tilezero tmm5", "tilezero tmm6", "tilezero tmm7",
                "2:",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "dec {steps}",
                "jnz 2b",
                "tilerelease",
                config = in(reg) &config,
                steps = inout(reg) steps.max(1) => _,
                options(nostack, readonly)
            );
        }
        4 * 16 * 16 * 32 * 2
    }

    #[target_feature(enable = "avx512f,avx512bf16")]
    pub fn dot_bf16(steps: usize) -> usize {
        let mut sums = [_mm512_set1_ps(0.0); SUMS];
        // SAFETY: both types are 512 plain bits.
        let ones = unsafe { transmute::<__m512, __m512bh>(_mm512_set1_ps(black_box(1.0))) };
        for _ in 0..steps {
            for sum in &mut sums {
                *sum = _mm512_dpbf16_ps(*sum, ones, ones);
            }
        }
        black_box(sums);
        SUMS * 16 * 4
    }

    #[target_feature(enable = "avx512f")]
    pub fn fused_512(steps: usize) -> usize {
        let mut sums = [_mm512_set1_ps(0.0); SUMS];
        let ones = _mm512_set1_ps(black_box(1.0));
        for _ in 0..steps {
            for sum in &mut sums {
                *sum = _mm512_fmadd_ps(ones, ones, *sum);
            }
        }
        black_box(sums);
        SUMS * 16 * 2
    }

    #[target_feature(enable = "avx2,fma")]
    pub fn fused_256(steps: usize) -> usize {
        let mut sums = [_mm256_set1_ps(0.0); SUMS];
        let ones = _mm256_set1_ps(black_box(1.0));
        for _ in 0..steps {
            for sum in &mut sums {
                *sum = _mm256_fmadd_ps(ones, ones, *sum);
            }
        }
        black_box(sums);
        SUMS * 8 * 2
    }
}
