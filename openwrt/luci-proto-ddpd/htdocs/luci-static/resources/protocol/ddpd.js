'use strict';
'require form';
'require fs';
'require network';
'require uci';
'require ddpd';

/* As an ask of ddpd.conf, but what stands behind `on` is less: /lib/netifd/ddpd.script puts one address on one
 * interface, and only of what netifd cannot share out. */
function askOfNetifdWrong(text) {
	const wrong = ddpd.askWrong(text, _('Write what is asked for like ::/56, ::/128, “3: ::/60” or “0.0.0.0/28 on @guest”.'));
	const found = text.trim().match(/(\S+)\s+on\s+(.*)$/);

	if (wrong != '' || found == null)
		return wrong;

	if (found[1].indexOf(':') >= 0 && ddpd.prefixOf(found[1]).length <= 64)
		return _('No interface can stand behind this prefix: interfaces share IPv6 prefixes up to /64 by their IPv6 assignment length (ip6assign).');

	if (ddpd.parts(found[2]).length > 1)
		return _('Only one interface can stand here: it gets the first address of the prefix.');

	return (found[2].indexOf('=') < 0) ? '' : _('This prefix is not cut into subnets, so no number stands behind the interface.');
}

function gatewayWrong(text) {
	return ddpd.addressWrong(text) || ((text.indexOf(':') >= 0) ? '' : _('This is IPv4; the default route is one of IPv6.'));
}

for (const code in ddpd.errors)
	network.registerErrorCode(code, ddpd.errors[code]);

return network.registerProtocol('ddpd', {
	getI18n: function() {
		return _('Prefixes (ddpd)');
	},

	/* opkg's LuCI asks the one, apk's the other. */
	getOpkgPackage: function() {
		return 'ddpd';
	},

	getPackageName: function() {
		return 'ddpd';
	},

	/* It makes no device of its own: it lives on the one that `device` names, as DHCPv6 does. So the base class
	 * knows its device, and what it holds. */
	isFloating: function() {
		return false;
	},

	isVirtual: function() {
		return false;
	},

	getIfname: function() {
		return this._ubus('l3_device') || this.super('getIfname', []);
	},

	renderFormOptions: function(s) {
		let o;

		o = s.taboption('general', form.DynamicList, 'grantor', _('Grantor'),
			_('Host name or address of the grantor, with a port if it is not 3373. Several are tried in turn; “gateway” is the default router, whoever it is.'));
		o.placeholder = 'exit1.example.net';
		o.rmempty = false;
		o.validate = ddpd.checked(ddpd.hostPortWrong);

		o = s.taboption('general', form.Value, 'key', _('Grantor’s public key'),
			_('As the grantor tells it: 44 letters of base64. It is not secret.'));
		o.rmempty = false;
		o.validate = ddpd.checked(ddpd.keyWrong);

		o = s.taboption('general', form.DummyValue, '_ours', _('Our public key'),
			_('The grantor needs it: it answers nobody whose key it does not know.'));
		o.load = function(section_id) {
			return fs.trimmed('/etc/ddpd/key.pub');
		};
		o.renderWidget = function(section_id, option_index, cfgvalue) {
			const keyfile = uci.get('network', section_id, 'keyfile') || '/etc/ddpd/key';

			if (keyfile != '/etc/ddpd/key')
				return E('em', {}, [ _('This interface has a key of its own; the public one is in the file %s.').format(keyfile + '.pub') ]);

			return cfgvalue ? ddpd.copyable(cfgvalue)
				: E('em', {}, [ _('It appears here after the first start, which makes the key.') ]);
		};

		o = s.taboption('general', form.DynamicList, 'ask', _('Ask for'),
			_('One prefix a line: ::/56 and 0.0.0.0/32 are any of that length; a fixed slot stands in front (“3: ::/60”). IPv6 prefixes up to /64 are shared by the interfaces that have an IPv6 assignment length (ip6assign). Of an IPv4 prefix, or a longer IPv6 one, the first address is put on one interface: on that behind it (“0.0.0.0/28 on @guest”), or on this one.'));
		o.default = '::/56';
		o.placeholder = '::/56';
		o.validate = ddpd.checked(askOfNetifdWrong);
		/* A line has spaces in it: a single string is one line, not a list of words. */
		o.load = function(section_id) {
			const lines = uci.get('network', section_id, 'ask');

			return (typeof(lines) == 'string') ? [ lines ] : lines;
		};

		/* LuCI itself draws `defaultroute` and `metric`, in the other tab. */
		o = s.taboption('general', form.Value, 'gateway', _('Gateway'),
			_('An IPv6 address: the next hop for traffic from the prefixes that the grantor gives. It is needed where the grantor is not asked by IPv6 on this interface.'));
		o.placeholder = _('the router by which the grantor is asked');
		o.validate = ddpd.checked(gatewayWrong);
		o.depends('defaultroute', '1');

		o = s.taboption('advanced', form.Flag, 'peerdns', _('Use the grantor’s name servers'),
			_('The name servers and search domains that the grantor tells are this router’s own.'));
		o.default = o.enabled;

		o = s.taboption('advanced', form.Value, 'mtu', _('MTU'));
		o.datatype = 'range(1280, 9000)';
		o.placeholder = _('as granted');

		o = s.taboption('advanced', form.Value, 'hostname', _('Host name'),
			_('Told to the grantor, whose status shows it.'));
		o.validate = ddpd.checked(ddpd.nameWrong);

		o = s.taboption('advanced', form.Value, 'keepalive', _('Keepalive'),
			_('Ask at least this often; behind a NAT 25s keeps the way open.'));
		o.placeholder = _('not needed');
		o.validate = ddpd.checked(ddpd.durationWrong);

		o = s.taboption('advanced', form.Value, 'keyfile', _('File of our private key'),
			_('It is made if it is missing, and never leaves this router.'));
		o.placeholder = '/etc/ddpd/key';
		o.validate = ddpd.checked(ddpd.pathWrong);

		o = s.taboption('advanced', form.DynamicList, 'accept', _('Accept only'),
			_('Grants outside of these prefixes are refused.'));
		o.placeholder = '2000::/3';
		o.validate = ddpd.checked(ddpd.prefixWrong);

		o = s.taboption('advanced', form.Flag, 'norelease', _('Keep the leases'),
			_('Do not give them back when the interface goes down.'));
		o.default = o.disabled;
	}
});
