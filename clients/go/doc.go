// Package tinkergate is the Go client of the Tinkergate gateway: slices in, slices out.
//
// [Connect] gives a [Client]; [Client.CreateSession] a [Session], which owns models and samplers;
// [Session.CreateModel] a [TrainingModel]. The methods of a model send their work off in order and
// return a [Future] at once; [Future.Wait] gives the result. Submit ForwardBackward and OptimStep
// of the next step before waiting for those of this one: the gateway then never waits for you.
//
// Every call is tried again while no gateway answers, for as long as [WithPatience] says.
// A submission is repeated under the same seq_id and a wait by the operation's name, so nothing is
// lost and nothing is done twice. Contexts end waiting, not work: [Future.Cancel] does that.
//
// Errors are of type [*Error]. Its kinds are errors too, to be used with [errors.Is]:
//
//	if errors.Is(err, tinkergate.NotFound) { ... }
//
// Slices that go into a [Tensor], a [Datum] or a [Text] are not copied. They must not be changed
// until the gateway has accepted the work ([Future.Accepted]), or the call has returned.
// Slices that come out of results are views of the message that arrived.
package tinkergate
