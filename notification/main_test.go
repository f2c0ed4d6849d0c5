package notification

import (
	"testing"

	"go.uber.org/goleak"
)

// No test may leave a goroutine behind: what the service starts, it ends.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }
