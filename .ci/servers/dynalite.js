// dynalite on 127.0.0.1, on a port that the system chooses and that is printed on a line of its own.
// Ends when its standard input does.
const dynalite = require('dynalite')
const server = dynalite({ createTableMs: 0, deleteTableMs: 0 })
server.listen(0, '127.0.0.1', () => console.log(server.address().port))
process.stdin.resume().on('end', () => process.exit(0))
