package outbox

// InitialRows are the tables that Schema makes with a row in them, each with what is
// true of this row until a relay has worked on the database.
var InitialRows = map[string]string{"outbox_lease": `epoch = 0 AND holder = ''`}
