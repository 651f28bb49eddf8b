//! The XIDs of the driver: what each means, whom it affects and what to do.
//!
//! Source: NVIDIA, "XID Errors", "Analyzing Xid Errors with the Xid Catalog" (Ampere and later; descriptions and the immediate action of
//! each). An XID that is not in the table is unused, or newer than it.

/// What an XID ends, at least until the action has been taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Effect {
    /// Nothing: the event is for the record.
    Nothing,
    /// The application that caused it, or that was on the GPU; the GPU stays usable.
    Application,
    /// The GPU: nothing else should start on it.
    Gpu,
    /// The machine.
    Node,
}

/// The first thing to do after an XID.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// Nothing.
    Ignore,
    /// Start the application again; if the XID returns, check its code.
    RestartApplication,
    /// Drain the GPU and reset it.
    ResetGpu,
    /// Reboot the machine; cut its power if that does not help.
    RebootNode,
    /// Read the recovery action that the driver reports with it.
    RecoveryAction,
    /// Check cables, bridges, power and cooling.
    CheckHardware,
    /// Update driver, firmware or the software that uses the GPU.
    Update,
}

impl Action {
    /// The action as an instruction.
    pub fn instruction(self) -> &'static str {
        match self {
            Self::Ignore => "nothing to do",
            Self::RestartApplication => "restart the application; if it returns, check the application",
            Self::ResetGpu => "drain the node and reset the GPU: nvidia-smi --gpu-reset",
            Self::RebootNode => "drain and reboot the node; if it returns, cut its power and contact the vendor",
            Self::RecoveryAction => "follow the recovery action of the driver: nvidia-smi -q | grep -i recovery",
            Self::CheckHardware => "check power cables, cooling and the slot",
            Self::Update => "update the driver and the software that uses the GPU",
        }
    }
}

/// An XID.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Xid {
    /// The number.
    pub number: u64,
    /// What happened.
    pub meaning: &'static str,
    /// What it ends.
    pub effect: Effect,
    /// What to do.
    pub action: Action,
}

const fn xid(number: u64, meaning: &'static str, effect: Effect, action: Action) -> Xid {
    Xid { number, meaning, effect, action }
}

use Action::{CheckHardware, Ignore, RebootNode, RecoveryAction, ResetGpu, RestartApplication, Update};
use Effect::{Application, Gpu, Node, Nothing};

/// XIDs that applications cause, for which the node agent keeps offering the GPU. NVIDIA's device plugin ignores the same ones
/// (`internal/rm/health.go`); XID 109 is among them although the catalogue asks for a reset.
pub const APPLICATION_XIDS: &[u64] = &[13, 31, 43, 45, 68, 109];

/// The known XIDs, by number.
pub const XIDS: &[Xid] = &[
    xid(8, "GPU stopped processing", Application, RestartApplication),
    xid(11, "invalid or corrupted push buffer", Application, RestartApplication),
    xid(13, "exception in a kernel of the application", Application, RestartApplication),
    xid(14, "error injected by a test", Nothing, Ignore),
    xid(25, "invalid or illegal push buffer", Application, RestartApplication),
    xid(31, "memory page fault of the application", Application, RestartApplication),
    xid(32, "invalid or corrupted push buffer, often from PCIe", Application, RestartApplication),
    xid(37, "driver firmware error", Application, Ignore),
    xid(38, "driver firmware error", Application, Ignore),
    xid(39, "copy engine 0 exception", Application, RestartApplication),
    xid(40, "copy engine 1 exception", Application, RestartApplication),
    xid(41, "copy engine 2 exception", Application, RestartApplication),
    xid(43, "GPU stopped processing the application", Application, Ignore),
    xid(44, "graphics engine fault during a context switch", Application, Ignore),
    xid(45, "work removed before it ended", Application, Ignore),
    xid(46, "GPU stopped processing", Gpu, ResetGpu),
    xid(48, "double-bit ECC error", Gpu, ResetGpu),
    xid(54, "auxiliary power is not connected", Gpu, CheckHardware),
    xid(60, "security engine exception", Application, RestartApplication),
    xid(61, "internal micro-controller breakpoint", Gpu, ResetGpu),
    xid(62, "internal micro-controller halt", Gpu, ResetGpu),
    xid(63, "row remapping recorded", Nothing, Ignore),
    xid(64, "row remapping failed", Gpu, ResetGpu),
    xid(66, "illegal access by the driver", Application, Ignore),
    xid(67, "illegal access by the driver", Application, Ignore),
    xid(68, "video decoder exception", Application, RestartApplication),
    xid(69, "graphics engine class error", Application, RestartApplication),
    xid(70, "copy engine 3 exception", Application, RestartApplication),
    xid(71, "copy engine 4 exception", Application, RestartApplication),
    xid(72, "copy engine 5 exception", Application, RestartApplication),
    xid(74, "NVLink error", Gpu, ResetGpu),
    xid(75, "copy engine 6 exception", Application, RestartApplication),
    xid(76, "copy engine 7 exception", Application, RestartApplication),
    xid(77, "copy engine 8 exception", Application, RestartApplication),
    xid(78, "vGPU start error", Application, Update),
    xid(79, "GPU has fallen off the bus", Node, RebootNode),
    xid(80, "corrupted data sent to the GPU", Application, RestartApplication),
    xid(82, "JPEG decoder 0 error", Application, RestartApplication),
    xid(83, "video decoder 1 error", Application, RestartApplication),
    xid(84, "video decoder 2 error", Application, RestartApplication),
    xid(85, "copy engine 9 exception", Application, RestartApplication),
    xid(86, "optical flow accelerator exception", Application, RestartApplication),
    xid(88, "video decoder 3 error", Application, RestartApplication),
    xid(89, "video decoder 4 error", Application, RestartApplication),
    xid(92, "high rate of single-bit ECC errors", Nothing, Ignore),
    xid(93, "wear limit of the configuration memory (inforom) reached", Nothing, Ignore),
    xid(
        94,
        "contained memory error: one application is lost; reset the GPU when convenient",
        Application,
        RestartApplication,
    ),
    xid(95, "uncontained memory error: several applications are lost", Gpu, ResetGpu),
    xid(96, "video decoder 5 error", Application, RestartApplication),
    xid(97, "video decoder 6 error", Application, RestartApplication),
    xid(98, "video decoder 7 error", Application, RestartApplication),
    xid(99, "JPEG decoder 1 error", Application, RestartApplication),
    xid(100, "JPEG decoder 2 error", Application, RestartApplication),
    xid(101, "JPEG decoder 3 error", Application, RestartApplication),
    xid(102, "JPEG decoder 4 error", Application, RestartApplication),
    xid(103, "JPEG decoder 5 error", Application, RestartApplication),
    xid(104, "JPEG decoder 6 error", Application, RestartApplication),
    xid(105, "JPEG decoder 7 error", Application, RestartApplication),
    xid(106, "test message of the management interface", Nothing, Ignore),
    xid(107, "silent test message of the management interface", Nothing, Ignore),
    xid(109, "context switch timeout of the application", Application, ResetGpu),
    xid(110, "security fault", Gpu, ResetGpu),
    xid(119, "GPU system processor (GSP) timeout", Gpu, ResetGpu),
    xid(120, "GPU system processor (GSP) error", Gpu, ResetGpu),
    xid(121, "corrected error of the link to the Grace CPU (C2C)", Nothing, Ignore),
    xid(126, "copy engine 10 exception", Application, RestartApplication),
    xid(127, "copy engine 11 exception", Application, RestartApplication),
    xid(128, "copy engine 12 exception", Application, RestartApplication),
    xid(129, "copy engine 13 exception", Application, RestartApplication),
    xid(130, "copy engine 14 exception", Application, RestartApplication),
    xid(131, "copy engine 15 exception", Application, RestartApplication),
    xid(132, "copy engine 16 exception", Application, RestartApplication),
    xid(133, "copy engine 17 exception", Application, RestartApplication),
    xid(134, "copy engine 18 exception", Application, RestartApplication),
    xid(135, "copy engine 19 exception", Application, RestartApplication),
    xid(136, "NVLink training failed", Gpu, ResetGpu),
    xid(137, "illegal NVLink peer-to-peer access of the application", Application, RestartApplication),
    xid(139, "optical flow accelerator 1 exception", Application, RestartApplication),
    xid(140, "unrecovered ECC error", Gpu, ResetGpu),
    xid(141, "CUDA fast path error", Application, Ignore),
    xid(142, "video encoder 3 error", Application, RestartApplication),
    xid(143, "GPU initialization error", Gpu, ResetGpu),
    xid(144, "NVLink 5: SAW error", Gpu, RecoveryAction),
    xid(145, "NVLink 5: RLW error", Gpu, RecoveryAction),
    xid(146, "NVLink 5: TLW error", Gpu, RecoveryAction),
    xid(147, "NVLink 5: TREX error", Nothing, Ignore),
    xid(148, "NVLink 5: NVLPW_CTRL error", Nothing, Ignore),
    xid(149, "NVLink 5: NETIR error, such as a link that is down", Gpu, ResetGpu),
    xid(150, "NVLink 5: MSE error", Gpu, ResetGpu),
    xid(151, "key rotation error (confidential computing): restart the virtual machine", Node, RebootNode),
    xid(152, "DLA SMMU error", Nothing, Ignore),
    xid(153, "DLA timeout", Nothing, Ignore),
    xid(
        154,
        "the recovery action that the driver requires has changed; it follows from another XID",
        Nothing,
        RecoveryAction,
    ),
    xid(155, "NVLink 5: link down on purpose", Gpu, ResetGpu),
    xid(156, "resource retirement recorded", Gpu, ResetGpu),
    xid(157, "resource retirement failed for lack of spares; the GPU stays usable", Nothing, Ignore),
    xid(158, "GPU fatal timeout", Gpu, ResetGpu),
    xid(159, "CHI error of the link to the Grace CPU (C2C)", Application, RestartApplication),
    xid(160, "memory channel retirement recorded", Nothing, Ignore),
    xid(161, "memory channel retirement failed", Nothing, Ignore),
    xid(162, "power smoothing re-engaged", Nothing, Ignore),
    xid(163, "power smoothing disengaged", Nothing, Ignore),
    xid(164, "power smoothing circuit near the end of its life", Nothing, Ignore),
    xid(165, "power smoothing circuit at the end of its life", Nothing, Ignore),
    xid(166, "NVLink traffic before encryption was configured (confidential computing)", Gpu, ResetGpu),
    xid(167, "PCIe fatal timeout", Node, RebootNode),
    xid(168, "less GPU memory than usual: errors in the protected region while ECC is off", Nothing, CheckHardware),
    xid(169, "security micro-controller halt", Gpu, ResetGpu),
    xid(170, "interrupt while confidential computing is on", Gpu, ResetGpu),
    xid(171, "uncorrectable DRAM error: detail of XID 48", Gpu, ResetGpu),
    xid(172, "uncorrectable SRAM error: detail of XID 48", Gpu, ResetGpu),
];

impl Xid {
    /// The entry of a number; an unknown XID counts as a fault of the GPU whose recovery action the driver knows.
    pub fn new(number: u64) -> Self {
        match XIDS.binary_search_by_key(&number, |x| x.number) {
            Ok(at) => XIDS[at],
            Err(_) => xid(number, "unknown; see NVIDIA's XID document", Gpu, RecoveryAction),
        }
    }

    /// Whether the GPU stays usable: an application caused it, or nothing is lost.
    pub fn is_harmless(&self) -> bool {
        self.effect <= Application
    }

    /// Whether the GPU is lost until a reset, for drivers that do not report the recovery action.
    pub fn needs_reset(&self) -> bool {
        self.effect >= Gpu && matches!(self.action, ResetGpu | RebootNode)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_is_ordered_and_matches_the_catalogue() {
        assert!(XIDS.windows(2).all(|w| w[0].number < w[1].number));
        let of = |n| (Xid::new(n).effect, Xid::new(n).action);
        for application in APPLICATION_XIDS {
            assert_eq!(Xid::new(*application).effect, Application, "{application}");
        }
        // NVIDIA's "Resolution Bucket (Immediate Action)".
        for reset in [46, 48, 62, 64, 95, 110, 119, 120, 136, 140, 143, 149, 150, 155, 156, 158] {
            assert_eq!(of(reset), (Gpu, ResetGpu), "{reset}");
            assert!(Xid::new(reset).needs_reset());
        }
        for ignored in [14, 63, 92, 106, 121, 157, 160, 161] {
            assert_eq!(of(ignored), (Nothing, Ignore), "{ignored}");
        }
        assert_eq!((of(79), of(154)), ((Node, RebootNode), (Nothing, RecoveryAction)));
        assert_eq!(of(94), (Application, RestartApplication));
        assert!(Xid::new(144).meaning.contains("NVLink 5") && !Xid::new(144).needs_reset());
        assert_eq!(of(999), (Gpu, RecoveryAction));
    }
}
