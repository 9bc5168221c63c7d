//! Which request means what: the closed set of routes, and how a path finds its own.

/// What a request is for; the value of a metric's label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Route {
    DeviceEvents,
    DeviceFiles,
    DeviceGet,
    DevicePut,
    DeviceDelete,
    DeviceList,
    DeviceBulk,
    KeysRegenerate,
    ModuleGet,
    ModulePut,
    ModuleDelete,
    ModuleList,
    StatisticsDevices,
    StatisticsService,
    TwinGet,
    TwinPatch,
    TwinPut,
    MethodInvoke,
    CommandReceive,
    /// Complete or reject.
    CommandSettle,
    CommandAbandon,
    CommandPurge,
    FeedbackReceive,
    FeedbackComplete,
    FeedbackAbandon,
    /// No route: an unknown path, a method that it has not, a request that cannot be read.
    None,
}

impl Route {
    pub const ALL: [Self; 26] = [
        Self::DeviceEvents,
        Self::DeviceFiles,
        Self::DeviceGet,
        Self::DevicePut,
        Self::DeviceDelete,
        Self::DeviceList,
        Self::DeviceBulk,
        Self::KeysRegenerate,
        Self::ModuleGet,
        Self::ModulePut,
        Self::ModuleDelete,
        Self::ModuleList,
        Self::StatisticsDevices,
        Self::StatisticsService,
        Self::TwinGet,
        Self::TwinPatch,
        Self::TwinPut,
        Self::MethodInvoke,
        Self::CommandReceive,
        Self::CommandSettle,
        Self::CommandAbandon,
        Self::CommandPurge,
        Self::FeedbackReceive,
        Self::FeedbackComplete,
        Self::FeedbackAbandon,
        Self::None,
    ];

    pub fn label(self) -> &'static str {
        match self {
            Self::DeviceEvents => "device_events",
            Self::DeviceFiles => "device_files",
            Self::DeviceGet => "device_get",
            Self::DevicePut => "device_put",
            Self::DeviceDelete => "device_delete",
            Self::DeviceList => "device_list",
            Self::DeviceBulk => "device_bulk",
            Self::KeysRegenerate => "keys_regenerate",
            Self::ModuleGet => "module_get",
            Self::ModulePut => "module_put",
            Self::ModuleDelete => "module_delete",
            Self::ModuleList => "module_list",
            Self::StatisticsDevices => "statistics_devices",
            Self::StatisticsService => "statistics_service",
            Self::TwinGet => "twin_get",
            Self::TwinPatch => "twin_patch",
            Self::TwinPut => "twin_put",
            Self::MethodInvoke => "method_invoke",
            Self::CommandReceive => "command_receive",
            Self::CommandSettle => "command_settle",
            Self::CommandAbandon => "command_abandon",
            Self::CommandPurge => "command_purge",
            Self::FeedbackReceive => "feedback_receive",
            Self::FeedbackComplete => "feedback_complete",
            Self::FeedbackAbandon => "feedback_abandon",
            Self::None => "none",
        }
    }
}

/// One line of a room's table: method, path (`{}` stands for one id), route.
pub type Entry = (&'static str, &'static str, Route);

/// What a table says of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    Route(Route),
    /// The path exists, for other methods.
    OtherMethod,
    Nothing,
}

/// Looks a request up. Literal words are compared without case, ids are not looked at.
// IoT Hub, HTTPS section 1: clients write `deviceBound` and `devicebound`.
pub fn find(table: &[Entry], method: &str, segments: &[String]) -> Found {
    let mut found = Found::Nothing;
    for (entry_method, path, route) in table {
        if is_path(path, segments) {
            if *entry_method == method {
                return Found::Route(*route);
            }
            found = Found::OtherMethod;
        }
    }
    found
}

fn is_path(path: &str, segments: &[String]) -> bool {
    let mut wanted = path.split('/').skip(1);
    let all = segments.iter().all(|segment| match wanted.next() {
        Some("{}") => !segment.is_empty(),
        Some(word) => word.eq_ignore_ascii_case(segment),
        None => false,
    });
    all && wanted.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_have_no_case_and_ids_are_one_segment() {
        const TABLE: &[Entry] = &[
            ("POST", "/devices/{}/messages/events", Route::DeviceEvents),
            ("GET", "/devices/{}", Route::DeviceGet),
            ("PUT", "/devices/{}", Route::DevicePut),
        ];
        let check = |method, path: &[&str], expected| {
            let segments: Vec<String> = path.iter().map(ToString::to_string).collect();
            assert_eq!(find(TABLE, method, &segments), expected, "{method} {path:?}");
        };
        check("GET", &["devices", "a"], Found::Route(Route::DeviceGet));
        check("PUT", &["Devices", "a/b"], Found::Route(Route::DevicePut));
        check("DELETE", &["devices", "a"], Found::OtherMethod);
        check("GET", &["devices"], Found::Nothing);
        check("GET", &["devices", ""], Found::Nothing);
        check("GET", &["devices", "a", "b"], Found::Nothing);
        check(
            "POST",
            &["devices", "a", "MESSAGES", "Events"],
            Found::Route(Route::DeviceEvents),
        );
    }

    #[test]
    fn labels_are_different() {
        let labels: std::collections::BTreeSet<_> = Route::ALL.iter().map(|route| route.label()).collect();
        assert_eq!(labels.len(), Route::ALL.len());
        for (index, route) in Route::ALL.into_iter().enumerate() {
            assert_eq!(route as usize, index);
        }
    }
}
