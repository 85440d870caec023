'use strict';
'require view';
'require form';
'require fs';
'require rpc';
'require uci';
'require ddpd';

/* Of /etc/config/network this page may know nothing: it has secrets of others. */
const callInterfaceDump = rpc.declare({
	object: 'network.interface',
	method: 'dump',
	expect: { 'interface': [] }
});

function wordWrong(text) {
	return (/^[!-~]+$/).test(text) && !/[;#]/.test(text) ? '' : _('This is one word of printable letters, without “;” and “#”.');
}

function interfaceWrong(text) {
	return ddpd.prefixOf(text) ? '' : _('Write an address with the length of its prefix, like 10.9.0.1/24.');
}

function prefix6Wrong(text) {
	return ddpd.prefixWrong(text) || ((text.indexOf(':') >= 0) ? '' : _('This is IPv4; only IPv6 has neighbour solicitations.'));
}

function wholeWrong(low, high) {
	return text => (/^\d{1,9}$/.test(text) && +text >= low && +text <= high)
		? '' : _('This is a whole number from %d to %d.').format(low, high);
}

function lengthsWrong(text) {
	for (const word of ddpd.parts(text)) {
		const ends = word.match(/^\/?(\d{1,3})(?:-\/?(\d{1,3}))?$/);

		if (ends == null || +ends[1] > 128 || +(ends[2] || 0) > 128)
			return _('A length is written like /56, or /56-/64 for all of these.');

		if (ends[2] != null && +ends[1] > +ends[2])
			return _('The shorter length stands in front: /56-/64.');
	}

	return '';
}

function boundsWrong(text) {
	const ends = text.split('-');
	const seconds = ends.map(end => (end == 'forever') ? Infinity : ddpd.secondsOf(end.trim()));

	if (ends.length > 2 || ends.some(end => ddpd.durationWrong(end.trim()) != ''))
		return _('Write the longest lifetime, like 12h, or the shortest and the longest, like 1h-6h.');

	return (seconds.length == 2 && seconds[0] > seconds[1]) ? _('The shorter time stands in front: 1h-6h.') : '';
}

function rateWrong(text) {
	const ends = text.split('/').map(end => end.trim());

	return (ends.length == 2 && wholeWrong(1, 1000000)(ends[0]) == '' && ddpd.durationWrong(ends[1]) == '')
		? '' : _('A rate is written like 5/30s: so many at once, and as many more in that time.');
}

function dateWrong(text) {
	const found = text.match(/^(\d{4})-(\d\d)-(\d\d)(?:T(\d\d):(\d\d))?Z?$/);
	const date = found ? new Date(Date.UTC(+found[1], +found[2] - 1, +found[3])) : null;
	const isDay = date != null && +found[1] >= 1970 && date.getUTCMonth() == found[2] - 1 && date.getUTCDate() == +found[3];

	return (isDay && +(found[4] || 0) < 24 && +(found[5] || 0) < 60)
		? '' : _('A day is written like 2027-03-31, or 2027-03-31T12:00; it is UTC.');
}

function shareWrong(text) {
	const found = text.match(/^(\d{1,2})\/(\d{1,2})$/);

	return (found && +found[1] >= 1 && +found[1] <= +found[2] && +found[2] <= 16)
		? '' : _('A share is written like 1/2, the first of two; there are at most 16.');
}

function sourceWrong(text) {
	const words = text.trim().split(/\s+/);

	if (words[0] == 'ula' && words.length == 1)
		return '';

	if (words[0] == 'interface' && words.length == 2)
		return ddpd.deviceWrong(words[1]);

	if (words[0] == 'grantor' && (words.length == 2 || (words.length == 3 && wholeWrong(0, 255)(words[2]) == '')))
		return wordWrong(words[1]);

	return (ddpd.prefixWrong(text) == '') ? ''
		: ddpd.prefixWrong(text) + ' ' + _('Or write “ula”, “interface @wan6”, “grantor exit1” or “grantor exit1 2”.');
}

function reachWrong(text) {
	const found = text.trim().match(/^(?:via\s+(\S+))?\s*(?:dev\s+(\S+))?$/) || text.trim().match(/^dev\s+(\S+)\s+via\s+(\S+)$/);
	const swapped = /^dev\s+\S+\s+via/.test(text.trim());
	const via = found ? found[swapped ? 2 : 1] : null;
	const dev = found ? found[swapped ? 1 : 2] : null;

	if (via == null && dev == null)
		return _('A way is written like “dev wg0”, “via 192.0.2.7” or “via fe80::1 dev @lan”.');

	return (via != null && ddpd.addressWrong(via)) || (dev != null && ddpd.deviceWrong(dev)) || '';
}

function routeWrong(text) {
	return (text == 'auto' || text == 'none') ? '' : reachWrong(text);
}

function defaultWrong(text) {
	return routeWrong(text.replace(/ redistribute$/, '').trim());
}

function rankWrong(text) {
	return (text == 'nearest' || wholeWrong(1, 255)(text) == '')
		? '' : _('A rank is a whole number from 1 to 255, or “nearest”.');
}

function suffixWrong(text) {
	const bytes = (text.indexOf(':') >= 0) ? ddpd.bytesOf6(text) : null;

	return (bytes && bytes.slice(0, 8).every(byte => byte == 0) && bytes.some(byte => byte != 0))
		? '' : _('A suffix is the lower half of an IPv6 address, like ::1.');
}

function listenWrong(text) {
	const found = text.match(/^\[([^\]]+)\](?::\d*)?$/) || ((text.split(':').length > 2) ? [ text, text ] : text.match(/^([^:]*)(?::\d*)?$/));

	return (ddpd.hostPortWrong(text) == '' && found && ddpd.bytesOf(found[1].split('%')[0]))
		? '' : _('Write an address of this router, with a port if need be: [::]:3373.');
}

function endpointWrong(text) {
	if (text == ':')
		return '';

	if (/^gateway\b/.test(text))
		return _('An endpoint is written like vpn.example.net:51820.');

	return (text[0] == ':') ? ddpd.portWrong(text.slice(1)) : ddpd.hostPortWrong(text);
}

function udpPortWrong(text) {
	return (text == 'none') ? '' : ddpd.portWrong(text);
}

function proxyWrong(text) {
	const words = text.trim().split(/\s+/);
	const isRule = { 'static': 2, 'auto': 2, 'never': 2, 'iface': 3 }[words[0]] == words.length;

	if (text.trim() == 'leased')
		return '';

	if (!isRule)
		return _('Write “leased”, “static PREFIX”, “auto PREFIX”, “iface PREFIX br-lan” or “never PREFIX”.');

	return prefix6Wrong(words[1]) || ((words.length == 3) ? ddpd.deviceWrong(words[2]) : '');
}

function namesOf(type) {
	return uci.sections('ddpd', type).map(s => s.name || s['.name']);
}

function grantorWrong(text) {
	const names = namesOf('grantor');

	return (names.indexOf(text) >= 0) ? ''
		: _('There is no grantor of that name; there are: %s.').format(names.join(', ') || _('none'));
}

function poolWrong(text) {
	const names = namesOf('pool');

	return (names.indexOf(text) >= 0) ? ''
		: _('There is no pool of that name; there are: %s.').format(names.join(', ') || _('none'));
}

/* ---- the fields: one for each key of ddpd.conf, in a tab of its section ---- */

/* Looked for whenever the field is shown: what was added since the page was loaded is offered too. */
function offering(o, names) {
	o.load = function(section_id) {
		this.keylist = [];
		this.vallist = [];
		names().forEach(name => this.value(name));

		return this.super('load', [ section_id ]);
	};
}

/* What is meant where nothing is written, in the field and in the table, which says “none” otherwise. */
function presetting(o, preset) {
	o.placeholder = preset();
	o.textvalue = function(section_id) {
		const written = this.cfgvalue(section_id);

		return (written != null && written !== '') ? E('span', {}, [ [].concat(written).join(' ') ]) : E('em', {}, [ preset(section_id) ]);
	};
}

function field(s, tab, type, name, title, text, more) {
	const o = s.taboption(tab, type, name, title, text);

	o.modalonly = (s instanceof form.GridSection) ? true : null;

	for (const key in more)
		if (key == 'wrong')
			o.validate = ddpd.checked(more.wrong);
		else if (key == 'choices' && typeof(more.choices) == 'function')
			offering(o, more.choices);
		else if (key == 'choices')
			more.choices.forEach(choice => o.value(...[].concat(choice)));
		else if (key == 'preset')
			presetting(o, () => more.preset);
		else if (key == 'column')
			o.modalonly = null;
		else if (key == 'required')
			o.rmempty = false;
		else
			o[key] = more[key];

	return o;
}

function value(s, tab, name, title, text, more) {
	return field(s, tab, form.Value, name, title, text, more);
}

function list(s, tab, name, title, text, more) {
	return field(s, tab, form.DynamicList, name, title, text, more);
}

/* A list of lines with spaces in them: a single string is one line, not several words. */
function lines(s, tab, name, title, text, more) {
	const o = list(s, tab, name, title, text, more);

	o.textvalue = function(section_id) {
		return E('span', {}, [ [].concat(this.cfgvalue(section_id) || []).join(', ') ]);
	};
	o.load = function(section_id) {
		const found = uci.get('ddpd', section_id, this.option);

		return (typeof(found) == 'string') ? found.split('\n').map(line => line.trim()).filter(line => line != '') : found;
	};

	return o;
}

/* ddpd.conf says yes and no; whoever has written 1 or on here meant it too. */
function yesNo(s, tab, name, title, text, preset) {
	const o = field(s, tab, form.Flag, name, title, text, {
		enabled: 'yes', disabled: 'no', 'default': preset
	});

	o.load = function(section_id) {
		const found = uci.get('ddpd', section_id, this.option);

		if (found == null || found === '')
			return null;

		return (/^(yes|1|on|true|enabled)$/).test(found) ? 'yes' : 'no';
	};

	return o;
}

function shortKey(o) {
	o.textvalue = function(section_id) {
		const key = this.cfgvalue(section_id);

		return E('code', {}, [ key ? String(key).slice(0, 8) + '…' : '' ]);
	};
}

/* What all sections with names have in common: `disabled`, and the name where UCI's letters do not do. */
function section(m, type, title, text, one, naming) {
	const s = m.section(form.GridSection, type, title, text);

	s.addremove = true;
	s.anonymous = false;
	s.nodescriptions = true;
	s.sortable = true;
	s.modaltitle = section_id => '%s: %s'.format(one, uci.get('ddpd', section_id, naming) || section_id);
	s.tab('common', _('Common'));
	s.tab('advanced', _('Advanced'));

	/* Where there is none yet, a line that opens. */
	s.render = function(...values) {
		return Promise.resolve(form.GridSection.prototype.render.apply(this, values)).then(node => {
			if (this.cfgsections().length)
				return node;

			node.querySelectorAll('h3').forEach(head => head.remove());

			return E('details', { 'class': 'cbi-section ddpd-fold' }, [
				E('summary', { 'style': 'cursor:pointer' }, [ title, ': ', E('em', {}, [ _('none yet') ]) ]), node
			]);
		});
	};

	const o = s.option(form.Flag, 'disabled', _('Enabled'));

	o.enabled = '0';
	o.disabled = '1';
	o.default = o.enabled;
	o.editable = true;
	o.modalonly = false;

	return s;
}

function named(s, longest, text) {
	const o = value(s, 'advanced', 'name', _('Name'), text);

	o.placeholder = _('the name of the section');
	o.validate = (section_id, written) => {
		if (written == null || written === '')
			return true;

		return wordWrong(written) || ((written.length <= longest) ? true : _('A name has at most %d letters.').format(longest));
	};
}

function onDevice(s, networks, text) {
	const o = value(s, 'common', 'device', _('Interface'), text, { wrong: ddpd.deviceWrong, column: true });

	presetting(o, section_id => section_id || _('the name of the section'));
	networks.forEach(name => o.value('@' + name));
}

/* The terms of an agreement: with one grantee, or with each peer of an interface. */
function terms(s, whose) {
	list(s, 'common', 'pools', _('Pools'), _('From these is given, in this order.'),
		{ wrong: poolWrong, required: true, column: true, choices: () => namesOf('pool') });
	value(s, 'common', 'limit', _('Leases'), whose, { wrong: wholeWrong(1, 256), placeholder: '1' });
	list(s, 'common', 'lengths', _('Lengths'), _('What may be had; otherwise all that the pools give.'),
		{ wrong: lengthsWrong, placeholder: '/56-/64' });
	list(s, 'advanced', 'total', _('In all'), _('At most as much as this in all, a family: ::/52, 0.0.0.0/28.'),
		{ wrong: ddpd.prefixWrong, placeholder: '::/52' });
	value(s, 'advanced', 'lifetime', _('Lifetime'), _('The longest, or the shortest and the longest (1h-6h): bounds of the pools’ lifetimes.'),
		{ wrong: boundsWrong, placeholder: 'forever' });
	value(s, 'advanced', 'rate', _('Rate'), _('New leases: so many at once, and as many more in that time. Renewals are free.'),
		{ wrong: rateWrong, placeholder: '5/30s' });
}

function addMain(m) {
	const s = m.section(form.NamedSection, 'main', 'ddpd', _('This router'));
	let o;

	s.anonymous = true;
	s.addremove = false;
	s.tab('common', _('Common'));
	s.tab('advanced', _('Advanced'));
	s.tab('files', _('Files for other programs'));

	o = field(s, 'common', form.Flag, 'enabled', _('Enabled'), _('Run ddpd with what is configured on this page.'));
	o.default = o.disabled;
	o.rmempty = false;

	value(s, 'common', 'config', _('Configuration file'), _('A ddpd.conf written by hand, used instead of everything else on this page. With “status = /var/run/ddpd/ddpd.json” in it the status page shows what it does.'),
		{ wrong: ddpd.pathWrong, placeholder: _('none: this page is used') });
	list(s, 'common', 'listen', _('Listen on'), _('Where asks are heard; [::]:3373 if there is a pool. The firewall has to let that UDP port in.'),
		{ wrong: listenWrong, placeholder: '[::]:3373' });
	value(s, 'common', 'hold', _('Hold'), _('How long an ended lease is held back for its former grantee.'),
		{ wrong: ddpd.durationWrong, placeholder: '30d' });
	value(s, 'common', 'rate', _('Rate'), _('New leases of all grantees together, such as 100/1s; otherwise without bound.'),
		{ wrong: rateWrong, placeholder: _('no bound') });
	list(s, 'common', 'pins', _('Pins'), _('Files with pins, CSV or SQLite, with the columns id, address and prefix.'),
		{ wrong: ddpd.pathWrong, placeholder: '/etc/ddpd/pins.csv' });
	value(s, 'common', 'grantees', _('Folder of grantees'), _('A file each, with the lines of one grantee’s section.'),
		{ wrong: ddpd.pathWrong, placeholder: '/etc/ddpd/grantees.d' });
	value(s, 'advanced', 'key', _('File of our private key'), _('It is made on the first start if it is missing, and never leaves this router.'),
		{ wrong: ddpd.pathWrong, placeholder: '/etc/ddpd/key' });
	value(s, 'advanced', 'leases', _('Lease file'), _('Where it outlives a restart of the router, the same grantees get the same prefixes.'),
		{ wrong: ddpd.pathWrong, placeholder: '/etc/ddpd/leases.json' });
	value(s, 'advanced', 'control', _('Control socket'), _('Where “ddpd status” asks.'),
		{ wrong: ddpd.pathWrong, placeholder: '/var/run/ddpd/ddpd.sock' });
	value(s, 'advanced', 'status', _('Status file'), _('What “ddpd status” says, for web pages; the status page here reads the usual one.'),
		{ wrong: ddpd.pathWrong, placeholder: '/var/run/ddpd/ddpd.json' });
	value(s, 'advanced', 'mark', _('Mark'), _('Protocol number of our routes; their metric is 100 times it.'),
		{ wrong: wholeWrong(1, 255), placeholder: '221' });
	value(s, 'advanced', 'load', _('Load'), _('Handshakes a second beyond which asks need a cookie.'),
		{ wrong: wholeWrong(1, 1000000), placeholder: '200' });
	value(s, 'advanced', 'handlers', _('Handlers'), _('A Python file with the site’s own handlers.'), { wrong: ddpd.pathWrong });
	value(s, 'files', 'accounting', _('Accounting'), _('Gets a line of JSON for each lease begun, ended and revoked.'), { wrong: ddpd.pathWrong });
	value(s, 'files', 'resolv', _('resolv.conf'), _('Gets the name servers of the grantors that live.'), { wrong: ddpd.pathWrong });
	value(s, 'files', 'dnsmasq', _('Servers of dnsmasq'), _('The same in the form of dnsmasq’s servers-file, a domain’s own servers too.'), { wrong: ddpd.pathWrong });
	value(s, 'files', 'radvd', _('radvd.conf'), _('For the LANs, written anew at every change.'), { wrong: ddpd.pathWrong });
	value(s, 'files', 'dhcp', _('dnsmasq.conf for DHCPv4'), _('For the LANs, from what is granted of IPv4.'), { wrong: ddpd.pathWrong });
}

function addPools(m) {
	const s = section(m, 'pool', _('Pools'), _('What this router may give.'), _('Pool'), 'name');

	value(s, 'common', 'prefix', _('Prefix'), _('Or “ula”, “interface @wan6” (what that one has), “grantor exit1” (what is held from it), “grantor exit1 2” (its slot 2).'),
		{ wrong: sourceWrong, required: true, column: true, placeholder: '2001:db8::/48' });
	list(s, 'common', 'give', _('Lengths'), _('What is given: /56-/64 is all of these.'),
		{ wrong: lengthsWrong, required: true, column: true, placeholder: '/56-/64' });
	list(s, 'common', 'reserve', _('Reserved'), _('Never given. Where the pool’s prefix may move, offsets in it: ::/56.'),
		{ wrong: ddpd.prefixWrong });
	value(s, 'common', 'lifetime', _('Lifetime'), _('How long a lease is valid.'),
		{ wrong: ddpd.durationWrong, preset: '12h', column: true });
	list(s, 'common', 'dns', _('Name servers'), _('Told to grantees.'), { wrong: ddpd.addressWrong });
	list(s, 'common', 'search', _('Search domains'), _('Told to grantees.'), { wrong: ddpd.nameWrong });
	list(s, 'advanced', 'ntp', _('Time servers'), _('Told to grantees.'), { wrong: ddpd.addressWrong });
	value(s, 'advanced', 'mtu', _('MTU'), _('Told to grantees.'), { wrong: wholeWrong(1280, 9000) });
	value(s, 'advanced', 'preferred', _('Preferred'), _('How long a lease is preferred.'),
		{ wrong: ddpd.durationWrong, placeholder: _('half of the lifetime') });
	value(s, 'advanced', 'renew', _('Renew after'), _('When a grantee renews.'),
		{ wrong: ddpd.durationWrong, placeholder: _('half of the preferred lifetime') });
	value(s, 'advanced', 'rebind', _('Rebind after'), _('When it tries every address of its grantor.'),
		{ wrong: ddpd.durationWrong, placeholder: _('0.8 of the preferred lifetime') });
	value(s, 'advanced', 'share', _('Share'), _('Which part is ours, of so many grantors that have one key: 1/2 here, 2/2 there.'),
		{ wrong: shareWrong, placeholder: '1/1' });
	named(s, 40, _('Where it has letters that the name of a section cannot have.'));
}

function addGrantees(m) {
	const s = section(m, 'grantee', _('Grantees'), _('Whom this router gives to.'), _('Grantee'), 'name');

	shortKey(value(s, 'common', 'key', _('Public key'), _('As the grantee tells it: 44 letters of base64.'),
		{ wrong: ddpd.keyWrong, required: true, column: true }));
	terms(s, _('So many of each family.'));
	list(s, 'advanced', 'pin', _('Pins'), _('Prefixes that are its own, whatever the pools say.'), { wrong: ddpd.prefixWrong });
	value(s, 'advanced', 'until', _('Until'), _('The day (UTC) on which the agreement is over.'),
		{ wrong: dateWrong, placeholder: _('without end') });
	value(s, 'advanced', 'route', _('Route'), _('How its leases are reached: auto, dev @lan, via 192.0.2.7, or none.'),
		{ wrong: routeWrong, placeholder: 'auto', choices: [ 'auto', 'none' ] });
	list(s, 'advanced', 'was', _('Keys before'), _('What these were leased is its own.'), { wrong: ddpd.keyWrong });
	named(s, 300, _('Where it has letters that the name of a section cannot have.'));
}

function addGrantors(m) {
	const s = section(m, 'grantor', _('Grantors'), _('Whom this router asks. A prefix for one network interface is easier asked for there, with the protocol ddpd.'), _('Grantor'), 'name');

	shortKey(value(s, 'common', 'key', _('Public key'), _('As the grantor tells it: 44 letters of base64.'),
		{ wrong: ddpd.keyWrong, required: true, column: true }));
	list(s, 'common', 'address', _('Addresses'), _('Where it listens; several are tried in turn. “gateway” is the default router, whoever it is.'),
		{ wrong: ddpd.hostPortWrong, required: true, column: true, placeholder: 'exit1.example.net:3373' });
	lines(s, 'common', 'ask', _('Ask for'), _('One slot a line: the prefix, and the interfaces that get a subnet of it: “::/56 on @lan br-guest=7”. “3: ::/60” fixes the slot.'),
		{ wrong: ddpd.askWrong, required: true, column: true, placeholder: '::/56 on @lan' });
	value(s, 'common', 'default', _('Default route'), _('For traffic from what it gives: auto (where the asks go), dev wg0, via fe80::1 dev @wan; “redistribute” behind it for routing daemons too.'),
		{ wrong: defaultWrong, choices: [ 'auto', 'auto redistribute', 'none' ] });
	value(s, 'common', 'keepalive', _('Keepalive'), _('Ask at least this often; behind a NAT 25s keeps the way open.'),
		{ wrong: ddpd.durationWrong, placeholder: _('not needed') });
	value(s, 'advanced', 'rank', _('Rank'), _('Of the ranked, only the best that lives is preferred; “nearest” goes by the round trip.'),
		{ wrong: rankWrong, choices: [ '1', '2', '3', 'nearest' ] });
	list(s, 'advanced', 'accept', _('Accept only'), _('Grants outside of these prefixes are refused.'),
		{ wrong: ddpd.prefixWrong, placeholder: '2000::/3' });
	value(s, 'advanced', 'suffix', _('Suffix'), _('This router’s address in each subnet.'), { wrong: suffixWrong, placeholder: '::1' });
	value(s, 'advanced', 'hostname', _('Host name'), _('Told to the grantor, whose status shows it.'), { wrong: ddpd.nameWrong });
	yesNo(s, 'advanced', 'install', _('Install'), _('Make routes and addresses; otherwise only the hook is called.'), 'yes');
	yesNo(s, 'advanced', 'release', _('Release'), _('Give all leases back when ddpd is told to end.'), 'no');
	value(s, 'advanced', 'hook', _('Hook'), _('A program that is run at every change.'), { wrong: ddpd.pathWrong });
	field(s, 'advanced', form.ListValue, 'hook_style', _('Style of the hook'), _('What it is told, and how.'),
		{ choices: [ 'ddpd', 'odhcp6c' ], optional: true, placeholder: 'ddpd' });
	named(s, 40, _('Where it has letters that the name of a section cannot have.'));
}

function addNdp(m, networks) {
	const s = section(m, 'ndp', _('Neighbour solicitations'), _('Answered here for what is routed on, where the outer router believes that all is on its own link.'), _('Neighbour solicitations'), 'device');

	onDevice(s, networks, _('Where they are heard; @wan6 is the device of the network wan6.'));
	lines(s, 'common', 'proxy', _('Answer for'), _('One a line: leased (exactly what is leased from here), static P always, auto P if the routing table leads on, iface P @lan if somebody there answers, never P.'),
		{ wrong: proxyWrong, required: true, column: true, choices: [ 'leased' ] });
	field(s, 'common', form.ListValue, 'method', _('Who answers'), _('The kernel can, for single addresses.'),
		{ choices: [ [ 'own', 'ddpd' ], [ 'kernel', _('the kernel') ] ], optional: true, placeholder: 'ddpd' });
	yesNo(s, 'advanced', 'router', _('Router'), _('Say in answers that this is a router.'), 'yes');
	field(s, 'advanced', form.ListValue, 'source', _('Answer from'), _('The address from which answers come.'),
		{ choices: [ [ 'link-local', _('the link-local address') ], [ 'interface', _('an address of the interface') ],
			[ 'target', _('the address that is asked for') ] ], optional: true, placeholder: _('the link-local address') });
	yesNo(s, 'advanced', 'autowire', _('Wire'), _('Make a route to what “iface” found inside.'), 'no');
	value(s, 'advanced', 'ttl', _('Believed for'), _('How long what “iface” found is believed; an hour at most.'), { wrong: ddpd.durationWrong, placeholder: '3s' });
	list(s, 'advanced', 'allow', _('Allow'), _('No answer for anything else.'), { wrong: prefix6Wrong });
	list(s, 'advanced', 'deny', _('Deny'), _('No answer for these.'), { wrong: prefix6Wrong });
}

function addWireguard(m, networks) {
	const s = section(m, 'wireguard', _('WireGuard'), _('Interfaces of which every peer may ask; what it is given becomes its allowed IPs.'), _('WireGuard'), 'device');

	onDevice(s, networks, _('The WireGuard interface; @vpn is the device of the network vpn.'));
	terms(s, _('So many of each family, for each peer.'));
	yesNo(s, 'common', 'add_peers', _('Add peers'), _('A grantee that is granted something becomes a peer, until it ends.'), 'no');
	value(s, 'advanced', 'listen', _('UDP port'), _('With it, and our key, the interface is made if there is none; “none”: it is never made.'),
		{ wrong: udpPortWrong, placeholder: '51820', choices: [ 'none' ] });
	list(s, 'advanced', 'address', _('Addresses'), _('Of the interface, if it is made.'), { wrong: interfaceWrong, placeholder: '10.9.0.1/24' });
	value(s, 'advanced', 'endpoint', _('Endpoint'), _('Told to grantees; otherwise the address that they asked, and the interface’s port.'),
		{ wrong: endpointWrong, placeholder: 'vpn.example.net:51820' });
	list(s, 'advanced', 'allowed', _('Allowed IPs'), _('Told to grantees: what they send into the tunnel.'), { wrong: ddpd.prefixWrong, placeholder: '::/0' });
	value(s, 'advanced', 'keepalive', _('Keepalive'), _('Told to grantees: how often to be heard, through a NAT.'), { wrong: ddpd.durationWrong, placeholder: '25s' });
	yesNo(s, 'advanced', 'dynamic', _('wg-dynamic'), _('It is spoken too, at fe80:: on the interface, TCP port 970.'), 'yes');
}

function addTunnels(m, networks) {
	const s = section(m, 'tunnel', _('Tunnels'), _('WireGuard interfaces that are made from what a grantor answers.'), _('Tunnel'), 'device');

	onDevice(s, networks, _('The interface that is made, such as wg1.'));
	value(s, 'common', 'grantor', _('Grantor'), _('Its answers say how the interface is made.'),
		{ wrong: grantorWrong, required: true, column: true, choices: () => namesOf('grantor') });
	list(s, 'common', 'routes', _('Routes'), _('Prefixes that are routed into it, whatever their source.'), { wrong: ddpd.prefixWrong, column: true });
	value(s, 'advanced', 'mtu', _('MTU'), _('Otherwise the kernel’s choice.'), { wrong: wholeWrong(1280, 9000), placeholder: '1420' });
}

/* ---- our public key, and what the other side pastes ---- */

function pasted(title, rows) {
	return E('details', {}, [
		E('summary', { 'style': 'cursor:pointer' }, [ title ]),
		E('div', { 'style': 'margin:.5em 0 1em' }, [ ddpd.copyable(rows.join('\n') + '\n') ])
	]);
}

function introduction(key) {
	const keyfile = uci.get('ddpd', 'main', 'key') || '/etc/ddpd/key';

	if (keyfile != '/etc/ddpd/key')
		return E('div', { 'class': 'cbi-section', 'id': 'ddpd-introduce' }, [
			E('h3', {}, [ _('Introduce this router') ]),
			E('p', {}, [ _('Each side has to know the other’s public key. Ours is in the file %s, and on the status page.').format(keyfile + '.pub') ])
		]);

	if (key == '')
		return E('div', { 'class': 'cbi-section', 'id': 'ddpd-introduce' }, [
			E('h3', {}, [ _('Introduce this router') ]),
			E('p', {}, [ E('em', {}, [ _('Our public key appears here after the first start, which makes it.') ]) ])
		]);

	return E('div', { 'class': 'cbi-section', 'id': 'ddpd-introduce' }, [
		E('h3', {}, [ _('Introduce this router') ]),
		E('p', {}, [ _('Each side has to know the other’s public key. Ours is not secret:') ]),
		E('p', {}, [ ddpd.copyable(key) ]),
		pasted(_('For a grantor that we ask: /etc/config/ddpd there'), [
			'config grantee \'router\'', '\toption key \'%s\''.format(key), '\tlist pools \'home\''
		]),
		pasted(_('For a grantor that we ask: its ddpd.conf'), [
			'[grantee router]', 'key = %s'.format(key), 'pools = home'
		]),
		pasted(_('For a grantee that asks us: /etc/config/network there'), [
			'config interface \'wan6d\'', '\toption proto \'ddpd\'', '\toption device \'@wan\'',
			'\tlist grantor \'%s\''.format(window.location.hostname || 'router.example.net'),
			'\toption key \'%s\''.format(key), '\tlist ask \'::/56\''
		]),
		pasted(_('For a grantee that asks us: its ddpd.conf'), [
			'[grantor router]', 'key = %s'.format(key),
			'address = %s'.format(window.location.hostname || 'router.example.net'), 'ask = ::/56 on br-lan'
		])
	]);
}

return view.extend({
	load: function() {
		return Promise.all([
			fs.trimmed('/etc/ddpd/key.pub'),
			uci.load('ddpd'),
			L.resolveDefault(callInterfaceDump(), [])
		]);
	},

	render: function(loaded) {
		const m = new form.Map('ddpd');
		const networks = L.toArray(loaded[2]).filter(net => L.isObject(net) && typeof(net.interface) == 'string')
			.map(net => net.interface).filter(name => name != 'loopback');

		m.readonly = !L.hasViewPermission();

		/* A configuration without that section has it from now on. */
		if (uci.get('ddpd', 'main') == null)
			uci.add('ddpd', 'ddpd', 'main');

		addMain(m);
		addPools(m);
		addGrantees(m);
		addGrantors(m);
		addNdp(m, networks);
		addWireguard(m, networks);
		addTunnels(m, networks);

		return m.render().then(shown => E('div', {}, [
			E('h2', {}, [ _('Prefixes (ddpd)') ]),
			E('div', { 'class': 'cbi-map-descr' }, [
				_('ddpd grants IP prefixes and asks for them, over any path, between peers that know each other’s public key. Wherever an interface can stand, @lan means the device of the network lan.')
			]),
			introduction(loaded[0]),
			shown
		]));
	}
});
