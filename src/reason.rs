//! The table of codes and of story steps. The API, health, the journal, the catalog, the OpenAPI document and README
//! take them from here, or a test compares them with this table.
//!
//! A code says *why* something is not as it should be. A step says *what happened* to a volume.

mod named;

use named::names;
pub use named::{Listed, Named};

/// Where a code is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SaidAt {
    /// The reason of a volume whose disk fails a check; the volume is `refused`.
    Check,
    /// The reason of a volume.
    Volume,
    /// A problem in health; the daemon is degraded.
    Degraded,
    /// A problem in health; no intent is accepted.
    Unhealthy,
    /// A remark in health.
    Remark,
    /// An error of the API, with this status.
    Http(u16),
    /// An error of attachctl itself.
    Command,
    /// Why an operation has failed.
    Operation,
}

use SaidAt::{Check, Command, Degraded, Http, Operation, Remark, Unhealthy, Volume};

/// A step as the store keeps it.
pub type StepName = Named<StoryStep>;

/// Declares the codes: name in Rust, name for programs, where it is used, meaning, what to do next. In a hint, `{}`
/// is replaced by a name that only the caller knows: a device, a scheme, or the NBD server's unit.
macro_rules! codes {
    ($($code:ident $name:literal [$($place:expr),+] $meaning:literal $hint:literal)+) => {
        names! {
            /// Why something is not as it should be.
            Code { $($code $name $meaning)+ }
        }

        impl Code {
            /// Returns where the code is used.
            pub const fn places(self) -> &'static [SaidAt] {
                match self { $(Self::$code => &[$($place),+],)+ }
            }

            /// Returns what the code means, for people.
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$code => $meaning,)+ }
            }

            /// Returns what to do next, with `{}` for a name that the caller knows. Empty if the message says it.
            pub const fn hint(self) -> &'static str {
                match self { $(Self::$code => $hint,)+ }
            }
        }
    };
}

codes! {
    // A disk fails a check.
    DuplicateSerial "DUPLICATE_SERIAL" [Check]
        "two disks show the serial; both are named"
        "Detach the disk that does not belong here; the volume is served again when one is left."
    InUseByHost "IN_USE_BY_HOST" [Check, Http(409), Operation]
        "this host uses the disk"
        "If the disk is a customer's, end that use: it is served by itself then (or run `attachctl resync`). If it is this host's own, withdraw the intent."
    SizeTooSmall "SIZE_TOO_SMALL" [Check]
        "the disk is smaller than the intent requires"
        "Compare the size in the intent with the volume's in CloudStack; withdraw the intent if it names the wrong volume."
    SizeZero "SIZE_ZERO" [Check]
        "the disk reports no capacity"
        "Check the volume in CloudStack, then detach and attach it again."
    LinkMissing "LINK_MISSING" [Check]
        "udev's by-id link is not there"
        "udev has not finished with the disk, or was not running when it came: run `udevadm trigger --action=change {}` as root."
    LinkElsewhere "LINK_ELSEWHERE" [Check]
        "udev's by-id link leads to another device"
        "udev has not finished with the disk, or was not running when it came: run `udevadm trigger --action=change {}` as root."
    NotMarked "NOT_MARKED" [Check]
        "the disk's node is not the NBD server's yet"
        "The disk was there before its intent; mark it with `udevadm trigger --action=add {}` as root."
    SchemeOff "SCHEME_OFF" [Check]
        "the disk is on a bus that is not matched here"
        "Attach the volume to the bus it had, or add \"{}\" to [device] schemes in attachd.toml and restart attachd."
    DiskseqMoved "DISKSEQ_MOVED" [Check]
        "the device was exchanged while it was read"
        "Nothing to do: the event of the new disk decides."

    // A volume is not served.
    DeviceGone "DEVICE_GONE" [Volume]
        "the volume was served, and its disk is gone"
        "Attach the volume again, or withdraw the intent."
    DeadlinePassed "DEADLINE_PASSED" [Volume]
        "no disk came before the deadline"
        "Check the volume in CloudStack and `attachctl devices` here; a disk that comes later is still served."
    UdevNotFinished "UDEV_NOT_FINISHED" [Volume]
        "the kernel shows the disk, and udev has not reported it yet"
        "If this lasts, `systemctl status systemd-udevd` shows whether it runs, and which rule or program holds it up."
    DiskUnread "DISK_UNREAD" [Volume]
        "the disk is there, but could not be read"
        "It is read again by itself. If this lasts, check the storage behind the disk, and `attachctl health`."
    UseUnknown "USE_UNKNOWN" [Volume]
        "it is unknown whether this host uses the disk"
        "It is tried again by itself; what attachd-helper did is in `journalctl -u attachd-helper`."
    HelperSilent "HELPER_SILENT" [Volume, Degraded]
        "attachd-helper does not answer"
        "Check `systemctl status attachd-helper.socket attachd-helper`: without it no new export is made, late intents are not marked and clients not told apart. It is asked again by itself."
    BackendDown "BACKEND_DOWN" [Volume, Degraded]
        "the NBD server does not serve"
        "Look at `systemctl status {}`; exports are proven again at once when it answers."
    SizeDiffers "SIZE_DIFFERS" [Volume]
        "the NBD server serves another size than the disk has"
        "It is tried again by itself; if it lasts, restart the NBD server ({})."
    DiskExchanged "DISK_EXCHANGED" [Volume]
        "the disk was exchanged while its export was proven"
        "The disk that is there now decides; if it lasts, run `attachctl resync`."
    ExportRefused "EXPORT_REFUSED" [Volume]
        "the NBD server refuses the export"
        "Check that the user of the NBD server ({}) may open the disk (its node's group) and that it serves attachd's folder."
    ExportFolder "EXPORT_FOLDER" [Volume, Degraded]
        "the folder of exports is not as it must be"
        "Correct the folder (`systemd-tmpfiles --create` makes it): exports are then made and proven again by themselves."
    ExportStuck "EXPORT_STUCK" [Volume, Degraded, Http(503), Operation]
        "an export cannot be taken away"
        "It is tried again by itself; or remove it by hand, or stop the NBD server ({}), which may serve a wrong disk."
    ServerFiles "SERVER_FILES" [Volume, Degraded, Remark]
        "the NBD server's files are not as it needs them"
        "Correct that file or move it away; attachd tries again by itself. Until then no new export is served, and the NBD server does not start again."
    ServerNotTold "SERVER_NOT_TOLD" [Volume, Degraded]
        "the NBD server cannot be signalled to read new exports"
        "Check `systemctl status attachd-helper.socket {}`; it is tried again by itself."
    BeingWithdrawn "BEING_WITHDRAWN" [Volume, Http(409), Operation]
        "the volume is being withdrawn"
        "Wait a moment: the volume is withdrawn, or it is served again if a client has connected in the meantime."
    Sealed "SEALED" [Volume, Http(409), Operation]
        "an operation has taken the volume's export away, and has not ended"
        "Wait for the operation: it gives the export back, or withdraws the volume."
    ClientsConnected "CLIENTS_CONNECTED" [Volume, Http(409), Command, Operation]
        "NBD clients are connected"
        "They keep their open exports. To disconnect them: `ss -K dst <address>` as root, or restart the NBD server ({})."

    // The store.
    StoreBusy "STORE_BUSY" [Volume, Unhealthy, Http(503), Operation]
        "another program has the store locked"
        "End the program that has the file open for writing (`fuser -v` names it); attachd then continues by itself."
    StoreFull "STORE_FULL" [Volume, Unhealthy, Http(503), Operation]
        "the store's disk is full"
        "Make room on its disk; attachd then continues by itself. What is served stays served."
    StoreSilent "STORE_SILENT" [Volume, Unhealthy, Http(503), Operation]
        "the store does not answer"
        "Check its disk and file system; attachd continues by itself when that answers."
    StoreLost "STORE_LOST" [Volume, Unhealthy, Http(503), Operation]
        "the store's file was removed or replaced while attachd ran"
        "Move away the file at its path, if there is one, and restart attachd: it restores the saved file."
    StoreFailed "STORE_FAILED" [Volume, Unhealthy, Http(503), Operation]
        "the store failed"
        "Repair the file or its folder; attachd then continues by itself."
    Stopping "STOPPING" [Volume, Unhealthy, Http(503)]
        "attachd is stopping"
        "Ask again when attachd has started."

    // Health.
    StoreSaved "STORE_SAVED" [Degraded]
        "a store was lost, and a copy of what was on record is kept"
        "Compare it with `attachctl list`: move the store away and restart attachd, which puts it in its place; or remove it."
    ProjectionBehind "PROJECTION_BEHIND" [Degraded]
        "the predecessor's tables are not up to date yet"
        "Nothing else depends on them, and the missing rows are written by themselves as soon as possible. `attachctl health` says why they cannot: a lock, a full disk, a changed table."
    ProjectionRefused "PROJECTION_REFUSED" [Degraded]
        "the predecessor's tables refuse a volume's rows"
        "The owner of the named constraint, trigger or other row must change it. It is tried again when the volume changes, after a minute to an hour, and at a restart of attachd."
    Insecure "INSECURE" [Degraded]
        "exports are served to other hosts without TLS"
        "Listen on 127.0.0.1 and use the tunnel."
    ExportsFailing "EXPORTS_FAILING" [Degraded]
        "volumes with a proven disk cannot be served"
        "`attachctl list` and `attachctl show` say why; it is tried again by itself."
    ConfigInvalid "CONFIG_INVALID" [Degraded]
        "the configuration has a mistake, so the old one stays in use"
        "`attachctl check-config` reports every mistake; correct them, then `systemctl reload attachd`."
    RestartNeeded "RESTART_NEEDED" [Remark]
        "the configuration has changes that take effect when attachd is restarted" ""
    ApiFiles "API_FILES" [Degraded]
        "changed TLS files or a changed token of the API cannot be used, so the old ones stay in use"
        "Correct the file that is named ([api] tls_certificate, tls_key, token_file): it is read again by itself."
    TlsFiles "TLS_FILES" [Degraded]
        "changed TLS files cannot be used, so the old ones stay in use"
        "Correct the files ([export] tls_ and so on): they are read again by themselves."
    VolumesRefused "VOLUMES_REFUSED" [Degraded]
        "volumes have a disk that fails a check"
        "`attachctl list` names the check and what to do."
    VolumesLost "VOLUMES_LOST" [Degraded]
        "volumes were served, and their disk is gone"
        "Attach them again, and they are served again; or withdraw them: `attachctl list --state lost`."
    VolumesExpired "VOLUMES_EXPIRED" [Degraded]
        "volumes waited for a disk past their deadline"
        "Check them in CloudStack: a disk that comes later is still served. Or withdraw them: `attachctl list --state expired`."
    ForeignExports "FOREIGN_EXPORTS" [Degraded]
        "the NBD server's folders hold files that attachd did not make"
        "The NBD server ({}) offers these unproven; remove them."
    ForeignClaims "FOREIGN_CLAIMS" [Degraded]
        "the folder of claims holds files that are not claims of attachd's"
        "It is left alone. Move it away: a file named like a serial marks that disk."
    ClaimsFolder "CLAIMS_FOLDER" [Unhealthy, Http(503), Operation]
        "the folder of claims is not as it must be"
        "Correct it (`systemd-tmpfiles --create` makes it): until then no intent is accepted. attachd then continues by itself."
    OperationsLate "OPERATIONS_LATE" [Degraded]
        "operations have not ended although their time is over"
        "See `attachctl operations` for the step each is at; mostly the store, or the folder of exports, is named in health, too."
    TcpNotServed "TCP_NOT_SERVED" [Degraded]
        "the API is not served over TCP, as it should be"
        "The message names the address and why. `ss -ltnp` shows the program that has the port; when that is mended, restart attachd. The Unix socket works meanwhile."
    TcpDiffers "TCP_DIFFERS" [Degraded]
        "[api] tcp is another address than systemd hands over"
        "Take [api] tcp out, or make ListenStream= of attachd-tcp.socket the same (`systemctl edit attachd-tcp.socket`)."
    UdevdSilent "UDEVD_SILENT" [Degraded]
        "udevd has not sent the event of a disk for more than 10 s"
        "Check `systemctl status systemd-udevd`; removals are still noticed, new disks are not served."
    UdevdHeldUp "UDEVD_HELD_UP" [Degraded]
        "udevd has not sent the events of some disks for more than 10 s, but does send those of others"
        "These are not served until udevd has reported them. `systemctl status systemd-udevd` shows the program that a rule waits for, `udevadm monitor` what is reported; a disk that does not answer holds it up as well. udevd gives up after 3 minutes."
    DisksUnread "DISKS_UNREAD" [Degraded]
        "disks cannot be read"
        "What is served of them stays served, nothing else of them is; they are read again by themselves. If this lasts, check the storage behind them."
    WriteZeroes "WRITE_ZEROES" [Remark]
        "nbd-server zeroes only the first 64 MiB of a larger request to write zeroes" ""
    ServerVersion "SERVER_VERSION" [Remark]
        "a known defect of this version of nbd-server" ""

    // CloudStack.
    CloudUnreachable "CLOUD_UNREACHABLE" [Degraded, Operation]
        "CloudStack cannot be reached, or gives no answer"
        "Check the network, the proxy and CloudStack itself. The next call tries again."
    CloudKeptIn "CLOUD_KEPT_IN" [Degraded]
        "the sandbox of attachd.service does not let it connect to CloudStack"
        "Copy /usr/share/attachd/cloudstack.conf to /etc/systemd/system/attachd.service.d/, name CloudStack's addresses in it, then `systemctl daemon-reload` and `systemctl restart attachd`. Exports stay served."
    CloudFiles "CLOUD_FILES" [Degraded]
        "the files with the key, its secret or the authority cannot be used, so CloudStack is not called"
        "Correct the file that is named: it is read again at the next call. A credential from systemd is read again when attachd is restarted."
    CloudNotLetIn "CLOUD_NOT_LET_IN" [Degraded, Operation]
        "CloudStack does not accept the key and its signature"
        "Check the key and its secret in CloudStack, their dates, and the clocks of both hosts: CloudStack does not say which of these is wrong."
    CloudNotUnderstood "CLOUD_NOT_UNDERSTOOD" [Degraded]
        "what answers is not CloudStack's API as attachd knows it"
        "Check [cloudstack] url: it is the address of the API, like https://cloud.example.com/client/api."
    CloudInsecure "CLOUD_INSECURE" [Degraded]
        "CloudStack is called on another host without TLS"
        "Use https:// in [cloudstack] url, with ca for an authority of your own, and take insecure = true out."
    OwnVmUnknown "OWN_VM_UNKNOWN" [Degraded, Http(409), Operation]
        "which VM of CloudStack's this host is is not known, so nothing can be attached to it"
        "Set [host] vm_id to the id that CloudStack shows for this VM, then `systemctl reload attachd`."

    // The API.
    BadHttp "BAD_HTTP" [Http(400)] "the request is not HTTP/1.1, or a line of its head is wrong" ""
    BadBody "BAD_BODY" [Http(400)] "the body is incomplete or cannot be read" ""
    BadJson "BAD_JSON" [Http(400)] "the body is no JSON" ""
    EmptyBody "EMPTY_BODY" [Http(400)] "the request has no body" ""
    InvalidQuery "INVALID_QUERY" [Http(400)] "the request does not take this query" ""
    NotAVolumeId "NOT_A_VOLUME_ID" [Http(400)] "the id is no volume's UUID" ""
    ClientGone "CLIENT_GONE" [Http(400)] "the client has hung up" ""
    TokenNeeded "TOKEN_NEEDED" [Http(401)] "the request has no token, or another one" ""
    NotLetIn "NOT_LET_IN" [Http(403)] "the user may not use the API over TCP" ""
    FromABrowser "FROM_A_BROWSER" [Http(403)] "a browser sent the request" ""
    ForeignHost "FOREIGN_HOST" [Http(403)] "the request names another host" ""
    NoSuchRoute "NO_SUCH_ROUTE" [Http(404)] "there is no such path" ""
    NoDevice "NO_DEVICE" [Http(404)] "the volume has no disk on this host, and is not attached to another VM by attachd" ""
    NoExport "NO_EXPORT" [Http(404)] "the volume has no export" ""
    NoSnapshot "NO_SNAPSHOT" [Http(404)] "no snapshot of the volume is kept track of" ""
    NoSuchIntent "NO_SUCH_INTENT" [Http(404)] "there is no intent for this volume" ""
    MethodNotAllowed "METHOD_NOT_ALLOWED" [Http(405)] "the path does not take this method" ""
    BodyTooSlow "BODY_TOO_SLOW" [Http(408)] "the body did not arrive in time" ""
    IntentDiffers "INTENT_DIFFERS" [Http(409), Operation] "the volume already has an intent with other values" ""
    SerialTaken "SERIAL_TAKEN" [Http(409), Operation] "another volume's intent has this serial" ""
    NotSealed "NOT_SEALED" [Http(409)] "the volume is not sealed by this operation" ""
    ClientsUnknown "CLIENTS_UNKNOWN" [Http(409), Command, Operation] "it is unknown which clients are connected" ""
    BodyTooLarge "BODY_TOO_LARGE" [Http(413)] "the body is too long" ""
    UriTooLong "URI_TOO_LONG" [Http(414)] "the path and query are too long" ""
    InvalidBody "INVALID_BODY" [Http(422), Operation] "the body does not have the fields that this request takes" ""
    TooManyIntents "TOO_MANY_INTENTS" [Http(429), Operation] "no more intents are accepted" ""
    HeadTooLarge "HEAD_TOO_LARGE" [Http(431)] "the request's head is too long" ""
    Failed "FAILED" [Http(500), Http(503), Operation] "the request failed because of a failure or a defect in attachd" ""
    TooManyConnections "TOO_MANY_CONNECTIONS" [Http(503)] "the user already has as many waiting connections as allowed" ""
    TooManyListeners "TOO_MANY_LISTENERS" [Http(503)] "the user already has as many requests waiting for events as allowed" ""
    TooManyRequests "TOO_MANY_REQUESTS" [Http(503)] "the user already has as many requests in progress as allowed" ""
    ResyncFailed "RESYNC_FAILED" [Http(503)] "the disks cannot be read" ""
    MetricsFailed "METRICS_FAILED" [Http(503)] "the metrics cannot be written" ""
    WaitTimeout "WAIT_TIMEOUT" [Http(504), Command] "the time limit passed before the state was reached" ""

    // Operations.
    NoCloud "NO_CLOUD" [Http(503), Operation] "attachd does not work with CloudStack here: there is no [cloudstack] url in attachd.toml" ""
    NoSuchOperation "NO_SUCH_OPERATION" [Http(404)] "there is no operation of this id" ""
    InvalidKey "INVALID_KEY" [Http(400)] "the Idempotency-Key header is none that can be used" ""
    NotAnOperationId "NOT_AN_OPERATION_ID" [Http(400)] "the id is no operation's UUID" ""
    KeyUsed "IDEMPOTENCY_KEY_USED" [Http(409)] "the idempotency key belongs to an operation that asks for something else" ""
    TooManyOperations "TOO_MANY_OPERATIONS" [Http(429)] "no more operations are taken while so many are open" ""
    TooLate "TOO_LATE" [Http(409)] "the operation can be called off no more: CloudStack was asked, or it has ended" ""
    OwnVm "OWN_VM" [Http(409), Operation] "the VM is this host itself" ""
    NoSuchVolume "NO_SUCH_VOLUME" [Operation] "CloudStack knows no such volume" ""
    NoSuchVm "NO_SUCH_VM" [Operation] "CloudStack knows no such VM" ""
    VolumeElsewhere "VOLUME_ELSEWHERE" [Operation] "the volume is attached to another VM than the request supposes" ""
    VolumeBusy "VOLUME_BUSY" [Operation] "something else is being done with the volume in CloudStack" ""
    RootVolume "ROOT_VOLUME" [Operation] "a VM starts from the volume" ""
    DeleteProtected "DELETE_PROTECTED" [Operation] "the volume has delete protection in CloudStack" ""
    IntentHere "INTENT_HERE" [Operation] "the volume is wanted on this host" ""
    DiskStillHere "DISK_STILL_HERE" [Operation] "CloudStack shows the volume detached, and its disk is still here" ""
    NotServed "NOT_SERVED" [Operation] "the volume is attached, and was not served in time" ""
    CloudRefused "CLOUD_REFUSED" [Operation] "CloudStack refuses it" ""
    CloudContradicts "CLOUD_CONTRADICTS" [Operation] "CloudStack said that it was done, and shows that it is not" ""
    JobCancelled "JOB_CANCELLED" [Operation] "CloudStack's job was cancelled" ""
    TimeIsUp "TIME_IS_UP" [Operation] "the operation's time ended before it was done" ""

    // attachctl.
    Refused "REFUSED" [Command] "the time limit passed, and the volume is refused" ""
    Unreachable "UNREACHABLE" [Command] "attachd cannot be reached" ""
    NoAnswer "NO_ANSWER" [Command] "attachd does not answer" ""
    BadAnswer "BAD_ANSWER" [Command] "the answer is not attachd's" ""
    StreamEnded "STREAM_ENDED" [Command] "the stream of events has ended" ""
    NoClient "NO_CLIENT" [Command] "attachctl cannot start its HTTP client" ""
    NoRuntime "NO_RUNTIME" [Command] "attachctl cannot start" ""
    OperationCancelled "OPERATION_CANCELLED" [Command] "the operation was cancelled" ""
    Interrupted "INTERRUPTED" [Command] "the waiting was interrupted; the operation goes on" ""
    NoSignals "NO_SIGNALS" [Command] "attachctl cannot listen for Ctrl-C" ""
    InvalidConfig "INVALID_CONFIG" [Command] "the configuration cannot be used" ""
    NotRoot "NOT_ROOT" [Command] "the command needs root" ""
    NotInstalled "NOT_INSTALLED" [Command] "the NBD server is not installed" ""
    SettingInTheWay "SETTING_IN_THE_WAY" [Command] "a setting has to be changed by hand first" ""
    EditByHand "EDIT_BY_HAND" [Command] "the configuration cannot be changed by a program" ""
    BackendNotChanged "BACKEND_NOT_CHANGED" [Command] "the NBD server is not changed" ""
}

impl Code {
    /// Returns what to do next, with this device, scheme or unit.
    pub fn hint_about(self, what: &str) -> String {
        debug_assert!(self.hint().contains("{}"), "{self} is about nothing in particular");
        self.hint().replace("{}", what)
    }

    /// Returns whether the code is used there.
    pub fn is_said(self, place: SaidAt) -> bool {
        self.places().contains(&place)
    }

    /// Returns whether it can be a volume's reason.
    pub fn is_of_volumes(self) -> bool {
        self.is_said(Volume) || self.is_said(Check)
    }

    /// Returns whether it can be a problem in health.
    pub fn is_of_health(self) -> bool {
        self.is_said(Degraded) || self.is_said(Unhealthy)
    }

    /// Returns the HTTP status of an API error with this code.
    pub fn status(self) -> Option<u16> {
        self.places().iter().find_map(|place| match place {
            Http(status) => Some(*status),
            _ => None,
        })
    }

    /// Returns whether the store is the cause.
    pub const fn is_of_store(self) -> bool {
        matches!(self, Self::StoreBusy | Self::StoreFull | Self::StoreSilent | Self::StoreLost | Self::StoreFailed)
    }
}

/// Declares the cases: name in Rust, code, what to do next.
macro_rules! cases {
    ($($(#[$about:meta])* $case:ident $code:ident $hint:literal)+) => {
        /// A case of a code that is more specific than the code. Its hint replaces the code's hint.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Case {
            $($(#[$about])* $case,)+
        }

        impl Case {
            /// Every case.
            pub const ALL: &[Self] = &[$(Self::$case,)+];

            /// Returns the code.
            pub const fn code(self) -> Code {
                match self { $(Self::$case => Code::$code,)+ }
            }

            /// Returns what to do next, with `{}` for a name that the caller knows.
            pub const fn hint(self) -> &'static str {
                match self { $(Self::$case => $hint,)+ }
            }
        }
    };
}

cases! {
    /// The kernel reports that the disk is open exclusively, and no table shows the user.
    UsedUnseen InUseByHost
        "It may be mounted in another mount namespace (a container; `grep -l ' {} ' /proc/*/mountinfo` finds it), or be part of a file system of several disks, of LVM, MD or crypt. End that use: it is tried again by itself, and at once by `attachctl resync`."
    /// A file of another kind has the name of an export.
    NameTaken ExportFolder
        "What is in its place was not made by attachd, and is left alone. It is tried again by itself."
    /// The step that writes to the store has panicked.
    WriteBrokeOff StoreFailed
        "It is tried again by itself."
    /// Too many writes are waiting.
    StoreCrowded StoreBusy
        "Ask again in a moment."
    /// The process that holds the lock is known.
    StoreHeld StoreBusy
        "End process {}, or the transaction that it has left open; attachd then continues by itself."
}

impl Case {
    /// Returns what to do next, with this device or process.
    pub fn hint_about(self, what: &str) -> String {
        debug_assert!(self.hint().contains("{}"), "{self:?} is about nothing in particular");
        self.hint().replace("{}", what)
    }
}

/// Declares the steps: name in Rust, name for programs, severity, `MESSAGE_ID`. An id is never reused for another
/// step: programs wait for it, and `packaging/attachd.catalog` explains it (`journalctl -x`).
macro_rules! steps {
    ($($step:ident $name:literal $weight:ident $id:literal)+) => {
        names! {
            /// What happened to a volume or to attachd itself: a step of a story, and the kind of a journal entry.
            StoryStep { $($step $name $name)+ }
        }

        impl StoryStep {
            /// Returns the `MESSAGE_ID`.
            pub const fn message_id(self) -> &'static str {
                match self { $(Self::$step => $id,)+ }
            }

            const fn weight(self) -> Weight {
                match self { $(Self::$step => Weight::$weight,)+ }
            }
        }
    };
}

steps! {
    Intent      "intent"       Info     "3ceaaf30814248ea91d93080f9b439fc"
    Waiting     "waiting"      Info     "9dfb369bab134faea27655daa05f1119"
    Heard       "heard"        Info     "6301bbfca0c5454e8ff9bb510944fe0c"
    Proven      "proven"       Info     "6fced11d2bd841e6847a8387cdde8d51"
    Matched     "matched"      Info     "3a124c647e024f05b7c1dce27f7695f5"
    Recorded    "recorded"     Info     "66080f174c9648e29cbd0ba3a1a6bcde"
    Exporting   "exporting"    Info     "b120a366f0bb49cf82f2dc05873f9bd0"
    Published   "published"    Info     "78b7d0ac84774ce08e4cda11b43c589b"
    Ready       "ready"        Info     "2330fcf1562a44b888668d77e827062c"
    Refused     "refused"      Warning  "c1acc9906424450aa36bf9b3ddcb369d"
    Revoked     "revoked"      Unasked  "9ad9b9a25e78454db065a1c284cc4549"
    Lost        "lost"         Warning  "993565976fba4662b6a730b7b12e9eed"
    Late        "late"         Info     "8df08078a22e418085c2c2af3977a654"
    Expired     "expired"      Notice   "f3194a3b381e43e7952c466e473a1797"
    Detaching   "detaching"    Info     "c498b6e73648445e9afa3a387f006745"
    Attaching   "attaching"    Info     "ab57f985433243daa75a2e199b58ba8d"
    Withdrawn   "withdrawn"    Info     "c1b87f1a7323491b99f9cbef0f69a4d0"
    Sealed      "sealed"       Info     "ba2185b8923645298ab1ed365c01b591"
    Unsealed    "unsealed"     Info     "6c396da50bbe45cd8d44f45ae03ef581"
    Resync      "resync"       Info     "f61b5283d99b47c3b26cb3ba21aae34a"
    Vanished    "vanished"     Info     "d1f7a64be5c04a0b9a1f0a7c5be3f2d8"
    EntriesLost "entries-lost" Warning  "2eb737282fea475eb5365e1458294a90"
    LeftOut     "left-out"     Info     "c8834217aae04504bac5b393d6a67d4d"
    OperationStep      "operation-step"      Info   "1a6d3694ef404b86b2c6224a7d946be1"
    OperationDone      "operation-completed" Info   "2682b37768954a5894a9b39a5b69d382"
    OperationFailed    "operation-failed"    Notice "9230b2a44d164d468a78d9ed44816dc8"
    OperationCancelled "operation-cancelled" Info   "fb024337b05b4a6a83afcd16743ff294"
}

/// How urgent a step is for an operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// Normal.
    Info,
    /// Worth knowing: a caller waits for something that does not happen.
    Notice,
    /// A volume is not served, and nobody asked for that.
    Warning,
}

/// The severity in the table.
enum Weight {
    Info,
    Notice,
    Warning,
    /// A warning, unless somebody asked for it.
    Unasked,
}

impl StoryStep {
    /// Returns the severity. `asked` is whether somebody asked for the step.
    pub const fn severity(self, asked: bool) -> Severity {
        match self.weight() {
            Weight::Unasked if asked => Severity::Info,
            Weight::Info => Severity::Info,
            Weight::Notice => Severity::Notice,
            Weight::Warning | Weight::Unasked => Severity::Warning,
        }
    }
}

names! {
    /// Why attachd-helper did nothing. attachd gets this code; callers of the API see it at most in a message.
    HelperCode {
        BadRequest    "BAD_REQUEST"    "the line is not a valid request"
        NotAllowed    "NOT_ALLOWED"    "the caller is neither attachd nor root"
        Failed        "FAILED"         "a call failed"
        NoAnswer      "NO_ANSWER"      "the disk does not answer"
        NotPresent    "NOT_PRESENT"    "the disk is not there"
        Unread        "UNREAD"         "the disk could not be read"
        Duplicate     "DUPLICATE"      "several disks show the serial"
        NotClaimed    "NOT_CLAIMED"    "the serial is not claimed"
        InUseByHost   "IN_USE_BY_HOST" "this host uses the disk"
        NodeElsewhere "NODE_ELSEWHERE" "the node is another device's"
        NotMarked     "NOT_MARKED"     "the node is not the NBD servers'"
        NotOpen       "NOT_OPEN"       "no NBD server has the disk open"
        NoServer      "NO_SERVER"      "no nbd-server runs"
        NotListening  "NOT_LISTENING"  "the process does not handle SIGHUP"
        Other         "OTHER"          "a helper of another version says something else"
    }
}

#[cfg(test)]
mod tests;
