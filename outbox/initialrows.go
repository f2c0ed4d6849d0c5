package outbox

// InitialRows are the tables that Schema makes with a row in them, each with the
// SQL condition that holds for this row until a relay has worked on the database.
// A database whose tables are empty but for such rows has never been used.
var InitialRows = map[string]string{"outbox_lease": `epoch = 0 AND holder = ''`}
