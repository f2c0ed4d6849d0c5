package outbox

// OnCrashPoint has fn called at each crash point of this process. It must be
// set before anything else of the package is used.
func OnCrashPoint(fn func(point string)) { crash = fn }
