//! Which instruction set the kernels run on, decided once at run time.

use std::cell::Cell;
use std::fmt;
use std::str::FromStr;
use std::sync::OnceLock;

/// Environment variable that overrides the detected path, by [`Path::name`].
pub const PATH_VARIABLE: &str = "FEDPIPE_KERNELS";

/// A family of instructions that the kernels are written for.
///
/// Results of one path are bit-identical on every run and for every number of threads; two paths agree to rounding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// AMX: tiles of bf16 (Sapphire Rapids and later, Linux), and [`Path::Avx512Bf16`] for all but products.
    Amx,
    /// AVX-512 with BF16 dot products (Zen 4, Cooper Lake, Sapphire Rapids and later).
    Avx512Bf16,
    /// AVX2 with fused multiply-add (most x86-64 of the last ten years).
    Avx2,
    /// 64-bit ARM, all of which has these instructions.
    Neon,
    /// Plain Rust, any machine.
    Portable,
}

/// Why the path asked for in [`PATH_VARIABLE`] cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// No path has this name.
    #[error("FEDPIPE_KERNELS={0}: no such kernel path; choose one of amx, avx512bf16, avx2, neon, portable")]
    Unknown(String),
    /// This processor lacks the instructions.
    #[error("FEDPIPE_KERNELS={0}: this processor does not support it; unset the variable to use {best}", best = Path::best())]
    Unsupported(Path),
}

thread_local! {
    static SCOPED: Cell<Option<Path>> = const { Cell::new(None) };
}

impl Path {
    /// Every path, best first.
    pub const ALL: [Self; 5] = [Self::Amx, Self::Avx512Bf16, Self::Avx2, Self::Neon, Self::Portable];

    /// The name used in [`PATH_VARIABLE`] and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Amx => "amx",
            Self::Avx512Bf16 => "avx512bf16",
            Self::Avx2 => "avx2",
            Self::Neon => "neon",
            Self::Portable => "portable",
        }
    }

    /// Whether this processor can run the path.
    pub fn is_supported(self) -> bool {
        match self {
            Self::Amx => Self::Avx512Bf16.is_supported() && amx::is_usable(),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Bf16 => {
                Self::Avx2.is_supported()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512bf16")
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
            #[cfg(not(target_arch = "x86_64"))]
            Self::Avx512Bf16 | Self::Avx2 => false,
            Self::Neon => cfg!(target_arch = "aarch64"),
            Self::Portable => true,
        }
    }

    /// Whether the path multiplies bf16 as such, with sums in f32. Elsewhere such products are of f32.
    pub fn multiplies_bf16(self) -> bool {
        matches!(self, Self::Amx | Self::Avx512Bf16)
    }

    /// The best path that this processor supports.
    pub fn best() -> Self {
        Self::ALL.into_iter().find(|path| path.is_supported()).unwrap_or(Self::Portable)
    }

    /// The path that the process uses: the override in [`PATH_VARIABLE`] if there is one, else [`Path::best`].
    ///
    /// Decided at the first call. Call it early to report a wrong override as an ordinary error.
    ///
    /// # Errors
    /// When the override names no path, or one that this processor does not support.
    pub fn try_active() -> Result<Self, PathError> {
        static ACTIVE: OnceLock<Result<Path, PathError>> = OnceLock::new();
        ACTIVE
            .get_or_init(|| match std::env::var(PATH_VARIABLE) {
                Ok(name) if !name.is_empty() => name.parse(),
                _ => Ok(Self::best()),
            })
            .clone()
    }

    /// [`Path::try_active`], for callers that have checked the override.
    ///
    /// # Panics
    /// With the text of the [`PathError`] when the override is wrong.
    pub fn active() -> Self {
        Self::try_active().unwrap_or_else(|error| panic!("{error}"))
    }

    /// Runs `body` with the kernels that it calls from this thread on this path: for tests and benchmarks, which walk
    /// all paths in one process. Where a pool's thread waits inside of `body`, other work that it takes up meanwhile is
    /// on this path too.
    ///
    /// # Panics
    /// When the processor does not support the path.
    pub fn scope<R>(self, body: impl FnOnce() -> R) -> R {
        struct Restore(Option<Path>);
        impl Drop for Restore {
            fn drop(&mut self) {
                SCOPED.set(self.0);
            }
        }
        assert!(self.is_supported(), "kernel path {self} is not supported by this processor");
        let _restore = Restore(SCOPED.replace(Some(self)));
        body()
    }

    /// The path of a call that starts on this thread. Always a supported one: what every `unsafe` in this crate that
    /// needs an instruction set rests on.
    pub(crate) fn current() -> Self {
        SCOPED.get().unwrap_or_else(Self::active)
    }
}

impl FromStr for Path {
    type Err = PathError;

    fn from_str(name: &str) -> Result<Self, PathError> {
        let path = Self::ALL
            .into_iter()
            .find(|path| path.name().eq_ignore_ascii_case(name))
            .ok_or_else(|| PathError::Unknown(name.to_owned()))?;
        if path.is_supported() { Ok(path) } else { Err(PathError::Unsupported(path)) }
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Lines in a set of the first-level data cache; eight where the processor does not say.
pub(crate) fn first_level_ways() -> usize {
    const USUAL: usize = 8;
    #[cfg(target_arch = "x86_64")]
    {
        use raw_cpuid::{CacheType, CpuId};
        static WAYS: OnceLock<usize> = OnceLock::new();
        *WAYS.get_or_init(|| {
            let caches = CpuId::new().get_cache_parameters();
            let data = caches.and_then(|mut all| all.find(|it| it.level() == 1 && it.cache_type() == CacheType::Data));
            data.map_or(USUAL, |cache| cache.associativity())
        })
    }
    #[cfg(not(target_arch = "x86_64"))]
    USUAL
}

/// Defines `$name(path, args…)`, which runs the generic `$body::<FMA>(args…)` compiled for the instruction set of the
/// path, so that its plain loops are vectorised for it. `FMA` tells whether a fused multiply-add is one instruction. One
/// generic type may follow (`fn $name<E: Element>(…)`), which the body takes after `FMA`. The body must be
/// `#[inline(always)]`.
macro_rules! multiversion {
    (
        $(#[$attribute:meta])*
        $vis:vis fn $name:ident $(<$generic:ident: $bound:path>)? ($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)?
            = $body:ident
    ) => {
        $(#[$attribute])*
        $vis fn $name $(<$generic: $bound>)? (path: $crate::dispatch::Path, $($arg: $ty),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
            fn avx512 $(<$generic: $bound>)? ($($arg: $ty),*) $(-> $ret)? {
                $body::<true $(, $generic)?>($($arg),*)
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            fn avx2 $(<$generic: $bound>)? ($($arg: $ty),*) $(-> $ret)? {
                $body::<true $(, $generic)?>($($arg),*)
            }
            match path {
                #[cfg(target_arch = "x86_64")]
                // SAFETY: `Path::current` hands out supported paths only.
                $crate::dispatch::Path::Amx | $crate::dispatch::Path::Avx512Bf16 => unsafe { avx512 $(::<$generic>)? ($($arg),*) },
                #[cfg(target_arch = "x86_64")]
                // SAFETY: as above.
                $crate::dispatch::Path::Avx2 => unsafe { avx2 $(::<$generic>)? ($($arg),*) },
                #[cfg(target_arch = "aarch64")]
                $crate::dispatch::Path::Neon => $body::<true $(, $generic)?>($($arg),*),
                _ => $body::<false $(, $generic)?>($($arg),*),
            }
        }
    };
}
pub(crate) use multiversion;

/// Whether the processor has AMX, and the system lets this process use its registers.
mod amx {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    pub(super) fn is_usable() -> bool {
        use std::arch::x86_64::{__cpuid, __cpuid_count};
        use std::sync::OnceLock;

        /// `ARCH_REQ_XCOMP_PERM` of `arch_prctl`, and what it is asked for: the contents of the tiles (8 KiB a thread).
        const REQUEST_PERMISSION: libc::c_long = 0x1023;
        const TILE_DATA: libc::c_long = 18;
        /// Of leaf 7 of `cpuid`: AMX-BF16 and AMX-TILE.
        const BITS: u32 = 1 << 22 | 1 << 24;
        static USABLE: OnceLock<bool> = OnceLock::new();
        *USABLE.get_or_init(|| {
            let there = __cpuid(0).eax >= 7 && __cpuid_count(7, 0).edx & BITS == BITS;
            // SAFETY: asks for a permission of this process and touches no memory; a system that does not know it refuses.
            there && unsafe { libc::syscall(libc::SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) } == 0
        })
    }

    #[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
    pub(super) fn is_usable() -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_override_is_named_when_it_is_wrong() {
        assert_eq!("portable".parse(), Ok(Path::Portable));
        assert_eq!("sse9".parse::<Path>(), Err(PathError::Unknown("sse9".into())));
        let foreign = if cfg!(target_arch = "aarch64") { Path::Avx2 } else { Path::Neon };
        assert_eq!(foreign.name().parse::<Path>(), Err(PathError::Unsupported(foreign)));
    }

    #[test]
    fn a_scope_ends_with_its_body() {
        let before = Path::current();
        Path::Portable.scope(|| assert_eq!(Path::current(), Path::Portable));
        assert_eq!(Path::current(), before);
    }
}
